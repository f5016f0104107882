"""The parts of `raylla bench`, one a module."""
