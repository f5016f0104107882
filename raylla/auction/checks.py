"""Arguments of the numeric modules as float arrays, refused by name where they make no sense."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def numbers(name: str, value: ArrayLike, lowest: float = -np.inf, highest: float = np.inf) -> Array:
    """``value`` as an array of finite numbers in [lowest, highest].

    Raises:
        ValueError: one of them is not.
    """
    array = np.asarray(value, dtype=np.float64)
    if not (np.isfinite(array) & (array >= lowest) & (array <= highest)).all():
        raise ValueError(f"{name}: give finite numbers in [{lowest:g}, {highest:g}], got {value!r}")
    return array


def logs(name: str, value: ArrayLike) -> Array:
    """``value`` [..., m] as log weights: -inf (impossible) is allowed, but not everywhere.

    Raises:
        ValueError: NaN, +inf, or a row with nothing possible.
    """
    array = np.asarray(value, dtype=np.float64)
    if not (array < np.inf).all() or not (array > -np.inf).any(axis=-1).all():
        raise ValueError(f"{name}: give log weights below +inf, in each row at least one above -inf")
    return array


def positive(name: str, value: float) -> float:
    """``value`` where it is a finite number above 0.

    Raises:
        ValueError: it is not.
    """
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r}: give a finite number above 0")
    return value


def ending(name: str, array: Array, *shape: int) -> Array:
    """``array`` where its last axes have the lengths ``shape``.

    Raises:
        ValueError: they do not.
    """
    if array.shape[max(0, array.ndim - len(shape)) :] != shape:
        raise ValueError(f"{name} has shape {array.shape}; give one that ends with {shape}")
    return array


def grid(name: str, value: ArrayLike) -> Array:
    """``value`` [k] as increasing numbers of at least 0, two or more.

    Raises:
        ValueError: it is not.
    """
    array = numbers(name, value, lowest=0)
    if array.ndim != 1 or len(array) < 2 or not (np.diff(array) > 0).all():
        raise ValueError(f"{name}: give two or more numbers in increasing order")
    return array
