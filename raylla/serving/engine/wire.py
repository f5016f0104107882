"""What an engine's process and who asks it say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylla.config import Sampling
from raylla.engines.live import Finish
from raylla.engines.protocol import Probe
from raylla.errors import StorageError, WeightError
from raylla.records import WeightVersion


@dataclass(frozen=True, slots=True)
class Piece:
    """More tokens of an answer; ``version`` is the weight version that all of it is written by."""

    token_ids: tuple[int, ...]
    finish: Finish | None
    version: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Begin an answer."""

    name: str
    prompt: Sequence[int]
    sampling: Sampling
    stream: bool


@dataclass(frozen=True, slots=True)
class Abort:
    """Forget an answer."""

    name: str


@dataclass(frozen=True, slots=True)
class Load:
    """Take over ``version`` once nothing runs that came before."""

    name: str
    version: WeightVersion
    probe: Probe | None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step added, by request."""

    pieces: tuple[tuple[str, Piece], ...]


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """Request ``name`` cannot be answered."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """How a `Load` ended: the mean |difference| to the probe (nats), or why it is refused."""

    name: str
    difference: float
    refusal: WeightError | StorageError | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine can be asked."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine answers nothing any more."""

    reason: str


Command = Ask | Abort | Load
Heard = StepOutput | RequestRefused | Loaded | Ready | Failed
