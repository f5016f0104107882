"""What the driver asks of the policy trainer, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raylla.config import Grpo, Tuning
from raylla.engines.protocol import Probe
from raylla.records import PreferenceGroup
from raylla.world.prompts import Messages

Told = Callable[[int, int, float], None]
"""Hears of steps done, steps in all and the newest step's loss (of rank 0's share, under DPO)."""


@dataclass(frozen=True, slots=True)
class GroupPart:
    """Some preference groups of a job; what the reference reads in place of each one's prompt, where it is
    not to read that, and how many turns of it may be cut."""

    groups: tuple[PreferenceGroup, ...]
    reference_messages: tuple[Messages, ...] = ()
    reference_turns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AlignJob:
    """One epoch's DPO, or GRPO: from the weights in ``source`` (the reference, too) to those in ``target``.

    ``parent`` is the version in ``source``: log-probabilities that came with answers of another are not
    the reference's.  ``reference_messages``, one for each group, are what the reference reads in place of
    the prompts; of the ``reference_turns`` in each, the oldest are cut where it is over ``room`` tokens.
    ``base`` is how a new adapter names the whole model in ``source``.  With ``grpo`` the groups hold all
    answers of their auctions, which were drawn at ``temperature``.  The groups may come in ``parts``, each
    a `GroupPart` or a reference to one, which the trainer's workers follow: ``held`` groups in all. Parts
    that are gone with a node ``again`` makes anew, by their places; without it their loss is the job's.
    """

    version: str
    source: str
    target: str
    groups: tuple[PreferenceGroup, ...]
    seed: int
    reference_messages: tuple[Messages, ...] = ()
    parent: str | None = None
    base: str = ""
    reference_turns: tuple[int, ...] = ()
    room: int = 0
    grpo: Grpo | None = None
    temperature: float = 1.0
    parts: tuple[Any, ...] = ()
    held: int = 0
    again: Callable[[Sequence[int]], list[GroupPart]] | None = None

    @property
    def count(self) -> int:
        """Groups in all."""
        return len(self.groups) + self.held

    def whole(self, parts: Sequence[GroupPart]) -> AlignJob:
        """The same job with the groups of its ``parts``, as they were fetched."""
        return replace(
            self,
            groups=(*self.groups, *(group for part in parts for group in part.groups)),
            reference_messages=tuple(messages for part in parts for messages in part.reference_messages),
            reference_turns=tuple(turns for part in parts for turns in part.reference_turns),
            parts=(),
            held=0,
            again=None,
        )


@dataclass(frozen=True, slots=True)
class Lesson:
    """What supervised training learns: after the chat ``messages``, each of ``answers`` with its weight.

    Several answers with weights that sum to 1 are a distribution over them. With ``ends`` each answer
    ends there.
    """

    messages: Messages
    answers: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """A `Lesson` as token ids."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def length(self) -> int:
        """Tokens of the packed row."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def pairs(self) -> int:
        """DPO pairs: none."""
        return 0

    @property
    def mass(self) -> float:
        """Answer tokens, each by its answer's weight."""
        return sum(weight * len(answer) for weight, answer in zip(self.weights, self.answers, strict=True))


@dataclass(frozen=True, slots=True)
class TuneJob:
    """Supervised training: from the weights in ``source`` to those in ``target``, named ``version``.

    ``base`` is how a new adapter names the whole model in ``source``.  ``checkpoints`` is a directory that
    all ranks see; a job that was interrupted goes on from the last one there.
    """

    version: str
    source: str
    target: str
    lessons: tuple[Lesson, ...]
    settings: Tuning
    seed: int
    checkpoints: str
    base: str


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What one supervised job did: ``losses`` per optimizer step (nats per answer token), ``tokens`` packed
    tokens trained on in this process's lifetime, ``resumed`` the steps that were done before it."""

    version: str
    path: str
    steps: int
    losses: tuple[float, ...]
    probe: Probe
    tokens: int
    seconds: float
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a job's reference log-probabilities came from, and why.

    ``used`` is "rollout" or "recomputed"; ``checked`` the answers whose log-probability came with them and
    was computed again, ``difference`` their mean |difference| in nats and ``largest`` the largest.
    """

    used: str
    checked: int = 0
    difference: float = 0.0
    largest: float = 0.0

    def __str__(self) -> str:
        if not self.checked:
            return self.used
        return (
            f"{self.used}: the rollout's differs by {self.difference:.2g} nats on average, "
            f"{self.largest:.2g} at most, over {self.checked} answers"
        )


@dataclass(frozen=True, slots=True)
class AlignResult:
    """What one job did.

    The tuples hold one value per optimizer step, each a mean over all pairs of the step's global batch:
    the DPO loss, the share of pairs with a positive margin, the margin (beta included), and ``shifts``,
    log pi - log pi_ref of the winner in nats.  Of GRPO, the loss is a mean over answers, and so are
    ``clipped``, the share of an answer's tokens whose ratio counts no further, and ``divergences``, its KL
    from the reference in nats a token.  ``tokens`` counts packed tokens of the training passes,
    ``seconds`` everything from receiving the job to the weights in place, which was at ``began`` (seconds
    since 1970).
    """

    version: str
    path: str
    steps: int
    pairs: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    margins: tuple[float, ...]
    probe: Probe
    seconds: float
    tokens: int
    reference: Reference
    shifts: tuple[float, ...] = ()
    learning_rates: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    training_seconds: float = 0.0
    began: float = 0.0
    clipped: tuple[float, ...] = ()
    divergences: tuple[float, ...] = ()


class Alignment:
    """One job under way."""

    def __init__(self, job: AlignJob, take: Callable[[Told], AlignResult]) -> None:
        self.job = job
        self._take = take
        self._result: AlignResult | None = None

    def wait(self, told: Told = lambda *_: None) -> AlignResult:
        """The result, as soon as it is there; until then ``told`` hears of the steps.

        Raises:
            LostError: workers or their nodes died once more than they are brought up anew.
            RunError: the training failed; names the cause.
            DeadlineError: workers not up within ``deadlines.start``, or no result within
                ``deadlines.align``.
        """
        if self._result is None:
            self._result = self._take(told)
        return self._result
