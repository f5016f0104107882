"""What is being served: a weight version of a run, by name, and how engines come to hold it.

The wanted versions are the Serve application's `user_config`, so that a restarted replica finds them
and a change of them is a change of config that Serve applies in place:

    Ingress  {"stable": TARGET, "canary": TARGET or null, "share": 0.1, "since": time or null}
    Engine   {"version": TARGET}        Canary  {"version": TARGET or null}
    Predictor {"version": TARGET}       TARGET  {"run": directory, "version": name}

Where versions share an engine (`raylla.serving.deploy.policies`) there is no Canary, and an Engine is told
{"version": TARGET, "canary": TARGET or null}.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylla.config import Sampling
from raylla.engines.protocol import Probe
from raylla.errors import EndpointError, RayllaError, RunError, WeightError
from raylla.records import WeightVersion
from raylla.runs.state import Run
from raylla.runs.versions import committed, named, note_served
from raylla.serving.engine.engine import AsyncEngine
from raylla.serving.engine.wire import Piece, PolicyRole
from raylla.serving.tracing import Carrier

if TYPE_CHECKING:
    from raylla.serving.engine.predictor import Predictor

log = logging.getLogger("raylla.serving")


@dataclass(frozen=True, slots=True)
class Target:
    """A weight version of a run."""

    run: str
    version: str

    @classmethod
    def of(cls, tree: dict[str, Any] | None) -> Target | None:
        """The target that a `user_config` names, if it does."""
        return cls(tree["run"], tree["version"]) if tree else None

    def plain(self) -> dict[str, str]:
        """As `of` reads it."""
        return asdict(self)


def find(run: str | Path, version: str | None) -> Target:
    """The target of a run's version; none: its last.

    Raises:
        RunError: it has no such version, or no trained pCTR model yet; names those that there are.
    """
    opened = Run.open(run)
    name = named(opened, version or committed(opened)[-1][0].name)[0].name
    if newest_pctr(opened) == 0:
        raise RunError(f"{run} has no trained pCTR model yet; train at least one epoch")
    note_served(opened, name)
    return Target(opened.place, name)


def weights(target: Target) -> tuple[WeightVersion, Probe | None]:
    """Where the weights of ``target`` are, and the trainer's probe of them.

    Raises:
        RunError: the run or the version is not there.
    """
    return named(Run.open(target.run), target.version)


def newest_pctr(run: Run) -> int:
    """The last epoch whose pCTR model is there; 0: none."""
    epochs = range(run.config.irpo.epochs, 0, -1)
    return next((one for one in epochs if run.home.holds(f"reward/epoch-{one}")), 0)


def pctr_of(target: Target) -> tuple[str, str]:
    """Where the newest pCTR model of the target's run is, and the name that auctions know it by.

    Raises:
        RunError: the run is not there.
    """
    run = Run.open(target.run)
    epoch = newest_pctr(run)
    return run.reward(epoch), f"{run.path.name}/epoch-{epoch}"


def take_pctr(predictor: Predictor, target: Target) -> str | None:
    """Predict clicks with the newest pCTR model of the target's run; where one predicts already, an
    unusable one leaves it in place, and why is returned.

    Raises:
        RunError: there is no model yet, and this one cannot be loaded.
    """
    try:
        predictor.load(*pctr_of(target))
    except (RayllaError, OSError) as error:
        problem = f"pCTR model of {target.run} for version {target.version}: {error}"
        log.error("refused: %s", problem)
        if not predictor.version:
            raise RunError(problem) from error
        return problem
    return None


def refusal(target: Target, error: Exception) -> str:
    """How a version that cannot be taken over is told of, in logs, health and errors."""
    return f"weight version {target.version} of {target.run}: {error}"


class Holding:
    """An engine and the version that it should hold; a canary has another.

    Until a version is live nothing is answered: the engine begins with the base's weights.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.held: Target | None = None
        self.canary: Target | None = None
        self.problem: str | None = None

    async def want(self, target: Target, canary: Target | None = None) -> None:
        """Take over ``target``; where that fails the old version goes on, and ``problem`` says why.

        Raises:
            WeightError: it fails, and there is no old version.
        """
        if target == self.held:
            self.problem = None
            return
        try:
            version, probe = weights(target)
            difference = await self.engine.load(version, probe)
        except (RayllaError, OSError) as error:
            self.problem = refusal(target, error)
            log.error("refused: %s", self.problem)
            if self.held is None:
                raise WeightError(self.problem) from error
            return
        log.info(
            "weight version is live", extra={"weight_version": target.version, "difference": difference}
        )
        self.held, self.problem = target, None

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier, role: PolicyRole
    ) -> AsyncGenerator[Piece, None]:
        """See `AsyncEngine.generate`; whatever the role, it is the version that is held.

        Raises:
            EndpointError: none is.
        """
        if self.held is None:
            raise none_live(self.problem)
        return self.engine.generate(prompt, sampling, stream, trace)


def none_live(problem: str | None) -> EndpointError:
    """What a request is told where no version is live."""
    return EndpointError(f"no weight version is live here: {problem or 'none was wished for'}")
