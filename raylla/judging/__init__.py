"""A judge that others taught: published click decisions of language models, to learn from and to measure.

`published` reads and splits them, `examples` makes training examples of them. Imports no torch.
"""
