"""The small models that come with the package, the grammar that taught them, their figures."""
