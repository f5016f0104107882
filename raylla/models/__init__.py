"""Where models are, and what is in them: one way for every reader of weights."""

from raylla.models.merged import copied, local
from raylla.models.places import CONFIGS, POCKET, base, check_places, resolve
from raylla.models.weights import HEAD, Tensors, read_weights, renamed, shapes, tied

__all__ = [
    "CONFIGS",
    "HEAD",
    "POCKET",
    "Tensors",
    "base",
    "check_places",
    "copied",
    "local",
    "read_weights",
    "renamed",
    "resolve",
    "shapes",
    "tied",
]
