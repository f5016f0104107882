"""Where models are, and what is in them: one way for every reader of weights."""

from raylla.models.adapters import Adapter, read_adapter
from raylla.models.merged import copied, local
from raylla.models.places import CONFIGS, POCKET, base, check_places, resolve
from raylla.models.weights import HEAD, Tensors, read_weights, renamed, shapes, tied

__all__ = [
    "CONFIGS",
    "HEAD",
    "POCKET",
    "Adapter",
    "Tensors",
    "base",
    "check_places",
    "copied",
    "local",
    "read_adapter",
    "read_weights",
    "renamed",
    "resolve",
    "shapes",
    "tied",
]
