"""What an engine's process and who asks it say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raylla.config import Sampling
from raylla.engines.live import Finish
from raylla.engines.protocol import Probe
from raylla.errors import ConfigError, StorageError, WeightError
from raylla.records import WeightVersion

PolicyRole = Literal["stable", "canary", "organic"]
"""As whom an engine answers."""


@dataclass(frozen=True, slots=True)
class Piece:
    """More tokens of an answer; ``version`` is the weight version that all of it is written by."""

    token_ids: tuple[int, ...]
    finish: Finish | None
    version: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Begin an answer; by the adapter of the version at ``policy``, or by the base, or whole weights."""

    name: str
    prompt: Sequence[int]
    sampling: Sampling
    stream: bool
    policy: str = ""


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
class Hold:
    """Take the adapter of ``version`` in beside what answers, once there is room."""

    name: str
    version: WeightVersion
    probe: Probe | None


@dataclass(frozen=True, slots=True)
class Drop:
    """Let the adapter of the version at ``policy`` go, once what it writes is done."""

    policy: str


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
    """How a `Load` or `Hold` ended: the mean |difference| to the probe (nats), or why it is refused."""

    name: str
    difference: float
    refusal: WeightError | StorageError | ConfigError | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine can be asked."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine answers nothing any more."""

    reason: str


Command = Ask | Abort | Load | Hold | Drop
Heard = StepOutput | RequestRefused | Loaded | Ready | Failed
