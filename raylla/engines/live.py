"""vLLM one step at a time, for who serves requests as they come: token ids in, token ids out.

Prompts are tokenized and answers decoded by the caller, in another thread or process than the one
that steps, so that a step costs no more than the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from raylla.config import Engine as Settings
from raylla.config import Sampling
from raylla.engines.protocol import AdapterRoom, Probe, Weights, Wish
from raylla.engines.vllm import VllmEngine
from raylla.errors import WeightError
from raylla.models import Adapter

Finish = Literal["stop", "length"]
WISHED = {"seed", "frequency_penalty", "presence_penalty"}
"""What a `Wish` adds, as vLLM names it."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step added to request ``name``; ``finish`` with its last tokens.

    A request that is not streamed has one `Step`, with all its tokens.
    """

    name: str
    token_ids: tuple[int, ...]
    finish: Finish | None


class Live(Protocol):
    """An engine that is stepped from outside, by one thread."""

    def submit(
        self, name: str, prompt: Sequence[int], sampling: Sampling, stream: bool, policy: str = ""
    ) -> None:
        """Begin request ``name``, which the adapter ``policy`` answers; none: the base or whole weights.

        Raises:
            ValueError: no such adapter is held, the prompt is empty, or leaves less than
                ``sampling.max_tokens`` of the context, or the answer's schema is none.
        """

    def step(self) -> list[Step]:
        """One token more for everything that runs."""

    def abort(self, names: Sequence[str]) -> None:
        """Forget these requests; unknown names are none."""

    def load(self, weights: Weights | Adapter, probe: Probe | None) -> float:
        """As `raylla.engines.Engine.load`; nothing may be running."""

    def hold(self, policy: str, directory: Path, probe: Probe | None) -> float:
        """Take the adapter in ``directory`` in beside what answers, which goes on; see `sharing`."""

    def drop(self, policy: str) -> None:
        """Let an adapter go; none of its requests may be running."""


class LiveVllm(VllmEngine):
    """A `Live` engine on vLLM."""

    def __init__(
        self, model_path: str, settings: Settings, seed: int, room: AdapterRoom | None = None
    ) -> None:
        super().__init__(model_path, settings, seed, room)
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._params = SamplingParams
        self._kinds = {True: RequestOutputKind.DELTA, False: RequestOutputKind.FINAL_ONLY}

    def submit(
        self, name: str, prompt: Sequence[int], sampling: Sampling, stream: bool, policy: str = ""
    ) -> None:
        """See `Live`; sampled with the engine's own random numbers, which cost least, but for a seed."""
        if error := self._refusal(len(prompt), sampling.max_tokens):
            raise ValueError(error)
        from vllm.exceptions import VLLMClientError

        try:
            params = self._wished(sampling, stream)
            lora = self._sharing.lora(policy) if self._sharing is not None else None
            self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, params, lora_request=lora)
        except VLLMClientError as error:
            raise ValueError(str(error)) from None

    def _wished(self, sampling: Sampling, stream: bool) -> Any:
        """The parameters of one request."""
        from vllm.sampling_params import StructuredOutputsParams

        more: dict[str, Any] = {}
        if isinstance(sampling, Wish):
            more = sampling.model_dump(include=WISHED)
            if sampling.json_schema is not None:
                more["structured_outputs"] = StructuredOutputsParams(json=sampling.json_schema)
        return self._params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            output_kind=self._kinds[stream],
            detokenize=False,
            **more,
        )

    def step(self) -> list[Step]:
        """See `Live`."""
        return [
            Step(output.request_id, tuple(output.outputs[0].token_ids), output.outputs[0].finish_reason)
            for output in (self._sharing or self._engine).step()
        ]

    def hold(self, policy: str, directory: Path, probe: Probe | None) -> float:
        """See `Live`."""
        if self._sharing is None:
            raise WeightError(f"the engine has no room for the adapter of {policy}")
        return self._sharing.hold(policy, directory, probe)

    def adapter_bytes(self) -> int:
        """Bytes of the weights of adapters, beside the base's."""
        return 0 if self._sharing is None else self._sharing.size()

    def drop(self, policy: str) -> None:
        """See `Live`."""
        if self._sharing is not None:
            self._sharing.drop(policy)

    def abort(self, names: Sequence[str]) -> None:
        """See `Live`."""
        self._engine.abort_request(list(names))
