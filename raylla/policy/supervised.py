"""Supervised training on weighted answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and answers to it, as tokens: the loss is the sum of -weight * log p(answer | prompt)."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
