"""One engine, many policies: versions that are adapters over one base, each request by the one of its role.

    stable, canary   an adapter each, or the base where a version is that       organic   the base

The base is in memory once.  A version comes in beside what answers, in milliseconds, and is live once the
engine has computed it right in one batch with all others (`raylla.engines.sharing`); to promote or roll
back changes only which version a role names.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence

from raylla import models
from raylla.config import Config, Sampling
from raylla.engines.protocol import AdapterRoom
from raylla.errors import ConfigError, RayllaError, WeightError
from raylla.models.adapters import base_of, unshareable
from raylla.models.places import adapter_settings, is_adapter
from raylla.records import WeightVersion
from raylla.serving.deploy.versions import Holding, Target, none_live, refusal, weights
from raylla.serving.engine.engine import AsyncEngine
from raylla.serving.engine.wire import Piece, PolicyRole
from raylla.serving.tracing import NO_TRACE, Carrier

log = logging.getLogger("raylla.serving")


class Policies:
    """An engine and the versions that it should answer by.

    Args:
        engine: on ``base``, with `adapter_room`.
    """

    def __init__(self, engine: AsyncEngine, base: WeightVersion) -> None:
        self.engine = engine
        self.problem: str | None = None
        self.held: Target | None = None
        self.canary: Target | None = None
        self._base = base
        self._adapters: dict[Target, WeightVersion] = {}

    async def want(self, stable: Target, canary: Target | None) -> None:
        """Answer by these; where one cannot be taken in what was live goes on, and ``problem`` says why.

        Raises:
            WeightError: it is the stable one, and no other was live.
        """
        self.problem = None
        self.canary = canary if canary in self._adapters else None
        self._drop_but({self.held, stable, canary})  # first: there is room for two
        if await self._hold(stable):
            self.held = stable
        elif self.held is None:
            raise WeightError(self.problem)
        self._drop_but({self.held, canary})
        if canary is not None and await self._hold(canary):
            self.canary = canary

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier, role: PolicyRole
    ) -> AsyncGenerator[Piece, None]:
        """See `AsyncEngine.generate`; the canary's requests are the stable version's where none is live.

        Raises:
            EndpointError: neither is the stable version.
        """
        if self.held is None:
            raise none_live(self.problem)
        target = None if role == "organic" else self.held
        if role == "canary" and self.canary is not None:
            target = self.canary
        version = self._adapters.get(target) if target is not None else None
        policy = version.path if version is not None else ""
        async for piece in self.engine.generate(prompt, sampling, stream, trace, policy):
            yield piece

    async def _hold(self, target: Target) -> bool:
        """Whether the engine holds ``target``, once it has tried to."""
        if target in self._adapters:
            return True
        try:
            version, probe = weights(target)
            if _whole(version) == self._base.path:
                return True
            difference = await self.engine.hold(version, probe)
        except (RayllaError, OSError) as error:
            self.problem = refusal(target, error)
            log.error("refused: %s", self.problem)
            return False
        self._adapters[target] = version
        log.info(
            "weight version is live", extra={"weight_version": target.version, "difference": difference}
        )
        return True

    def _drop_but(self, kept: set[Target | None]) -> None:
        for target in self._adapters.keys() - kept:
            self.engine.drop(self._adapters.pop(target))


class RoleWriter:
    """A `Writer` over what this process's engine holds."""

    def __init__(self, holding: Holding | Policies, role: PolicyRole) -> None:
        self._holding = holding
        self._role = role

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier = NO_TRACE
    ) -> AsyncGenerator[Piece, None]:
        """See `AsyncEngine.generate`."""
        return self._holding.generate(prompt, sampling, stream, trace, self._role)


def adapter_room(config: Config) -> AdapterRoom:
    """Room for the adapters that a run of ``config`` trains.

    Raises:
        ConfigError: it trains none.
    """
    if config.lora is None:
        raise ConfigError(
            "serving.adapters=shared: the run was trained without `lora`, so that its versions are whole "
            "models; set serving.adapters=merged, or serve a run whose config has lora"
        )
    return AdapterRoom.of(config.lora)


def shared_base(config: Config) -> WeightVersion:
    """The whole model below the adapters of ``config``, under the name that its answers are known by.

    Raises:
        ConfigError: it does not exist.
    """
    place = models.base(config.ad_llm.path, "ad_llm.path")
    whole = place == models.resolve(config.ad_llm.path, "ad_llm.path") and config.warmstart is None
    return WeightVersion("v0" if whole else "untouched", 0, place)


def check_shared(config: Config, target: Target) -> None:
    """See, before anything loads, that ``target`` can be an adapter beside others.

    Raises:
        ConfigError: the run of ``config`` trains no adapters.
        RunError: the run or the version is not there.
        WeightError: the version is a whole model, an adapter of another base, or of another shape.
    """
    room, version = adapter_room(config), weights(target)[0]
    expected = shared_base(config).path
    if (whole := _whole(version)) is not None:
        if whole != expected:
            raise WeightError(
                f"serving.adapters=shared: version {version.name} of {target.run} is a whole model and no "
                "adapter; set serving.adapters=merged"
            )
        return
    settings = adapter_settings(version.path)
    why = unshareable(settings, room.rank, room.targets)
    if why is None and base_of(settings) != expected:
        why = f"its base is {base_of(settings)}, the endpoint's {expected}"
    if why is not None:
        raise WeightError(
            f"serving.adapters=shared: version {version.name} of {target.run} cannot share the engine: "
            f"{why}; set serving.adapters=merged"
        )


def _whole(version: WeightVersion) -> str | None:
    """Where the whole model of a version is that is no adapter."""
    return None if is_adapter(version.path) else version.path


__all__ = ["Policies", "RoleWriter", "adapter_room", "check_shared", "shared_base"]
