"""Engine and pCTR model in Serve deployments of their own, as the auctioneer asks them: by handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from raylla.config import Sampling
from raylla.errors import BusyError, EndpointError
from raylla.reward.rows import ClickRow
from raylla.serving.engine.predictor import Rate
from raylla.serving.engine.wire import Piece, PolicyRole
from raylla.serving.tracing import NO_TRACE, Carrier
from raylla.world.retrieval import Vectors

LOST = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError, AioRpcError)
"""What a handle raises where a replica died, or none is up."""
AGAIN_SECONDS = 0.2
"""Between two tries of what a dead replica did not answer; Serve starts another meanwhile."""


class RemoteWriter:
    """A `Writer` over a handle, whose engine answers as ``role``."""

    def __init__(self, handle: Any, role: PolicyRole = "stable") -> None:
        self._handle = handle.options(stream=True)
        self._role = role

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier = NO_TRACE
    ) -> AsyncGenerator[Piece, None]:
        """See `AsyncEngine.generate`; asked again where the replica died before it had said anything.

        Raises:
            BusyError: the deployment's queue is full.
            EndpointError: the engine refuses the prompt, or died in the middle of the answer.
        """
        begun = False
        while True:
            pieces = self._handle.generate.remote(prompt, sampling, stream, trace, self._role)
            try:
                async for piece in pieces:
                    begun = True
                    yield piece
                return
            except BackPressureError as error:
                raise BusyError(str(error)) from None
            except LOST as error:
                if begun:
                    raise EndpointError(
                        f"the engine was lost in the middle of the answer: {error}"
                    ) from None
            finally:
                pieces.cancel()
            await asyncio.sleep(AGAIN_SECONDS)


class RemoteOracle:
    """An `Oracle` over a handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def rates(self, rows: Sequence[ClickRow], trace: Carrier = NO_TRACE) -> tuple[str, list[Rate]]:
        """See `Oracle`."""
        rated: tuple[str, list[Rate]] = await self._ask("rates", list(rows), trace)
        return rated

    async def encode(self, texts: Sequence[str], trace: Carrier = NO_TRACE) -> Vectors:
        """See `Oracle`."""
        vectors: Vectors = await self._ask("encode", list(texts), trace)
        return vectors

    async def _ask(self, method: str, argument: Any, trace: Carrier) -> Any:
        """One call; again on another replica where one died. The caller's deadline ends the tries.

        Raises:
            BusyError: the deployment's queue is full.
        """
        while True:
            try:
                return await getattr(self._handle, method).remote(argument, trace)
            except BackPressureError as error:
                raise BusyError(str(error)) from None
            except LOST:
                await asyncio.sleep(AGAIN_SECONDS)
