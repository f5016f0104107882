"""Adapters over one base in one vLLM engine: which are held, and the check that each is computed as itself.

An adapter's file is the one that the trainer saved, to the byte.  Before it is held, the base, every
adapter that is held and the new one are computed in one batch.  The new one must reproduce the trainer's
probe there, and every other what it gave before.  Neighbours may differ by less than such tolerances; so
the new one also reads the text of every other adapter there, and must give it figures of its own.  What
runs meanwhile goes on: the batch is one of its steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylla.engines.protocol import AdapterRoom, Probe
from raylla.engines.vllmparams import reading
from raylla.errors import WeightError
from raylla.models.adapters import unshareable
from raylla.models.packages import digest
from raylla.models.places import ADAPTER, adapter_settings
from raylla.models.weights import ADAPTER_WEIGHTS

COMPARED = 6
"""Tokens of a policy's text that are computed again whenever another comes."""
_CROSSED = 4
"""Tokens of it that the other computes."""
_ALIKE = 1e-6
"""Mean |difference| (nats) of one policy's figures in two rows of a batch, at most."""
_COMPANY = 6
"""Company may change a policy by this part of the probe's tolerance: the weights and numbers are the same,
and only the order of sums is another."""


@dataclass(slots=True)
class _Policy:
    """An adapter, none for the base; a text of its own, and what it gives its tokens but the first."""

    name: str
    lora: Any
    text: list[int]
    logprobs: list[float]
    digest: str = ""


class Sharing:
    """The adapters of ``engine``.

    Args:
        engine: vLLM's, made with `vllmparams.adapter_arguments` of ``room``.
        tolerance: largest mean |difference| of log-probabilities to a probe, in nats.
        text: token ids by which the base is known, and an adapter that has no probe.
        longest: tokens of a text, with the one that the engine insists on sampling.
    """

    def __init__(
        self, engine: Any, room: AdapterRoom, tolerance: float, text: Sequence[int], longest: int
    ) -> None:
        self._engine = engine
        self._room = room
        self._tolerance = tolerance
        self._longest = longest
        self._text = list(text[:COMPARED])
        self._numbers = itertools.count(1)
        self._asks = itertools.count()
        self._held: dict[str, _Policy] = {}
        self._passed: list[Any] = []
        """What other requests were given while a policy was checked."""
        ((alone),) = self._together([(self._text, None)])
        self._base = _Policy("the base", None, self._text, alone)

    def lora(self, name: str) -> Any:
        """What a request says to be computed with adapter ``name``; none for "", the base.

        Raises:
            ValueError: it is not held.
        """
        if name and name not in self._held:
            raise ValueError(f"no adapter {name} is held; there are {', '.join(self._held) or 'none'}")
        return self._held[name].lora if name else None

    def step(self) -> list[Any]:
        """The outputs of one step more, or those of the steps in which a policy was checked."""
        if self._passed:
            passed, self._passed = self._passed, []
            return passed
        found: list[Any] = self._engine.step()
        return found

    def hold(self, name: str, directory: Path, probe: Probe | None) -> float:
        """Take the adapter in ``directory`` in under ``name``; the mean |difference| to ``probe`` (nats).

        Raises:
            WeightError: it does not fit the base or the room, there is none left, or in company it or
                another policy is not computed as it should be; nothing has changed then.
        """
        settings = adapter_settings(directory)
        if (why := unshareable(settings, self._room.rank, self._room.targets)) is not None:
            raise WeightError(f"the adapter of {name} cannot share the base: {why}")
        if len(self._held) >= self._room.most:
            raise WeightError(
                f"there is no room for the adapter of {name}: {', '.join(self._held)} are held, and the "
                f"engine has room for {self._room.most}"
            )
        with ThreadPoolExecutor(1, "digest") as beside:  # while vLLM reads the file, too
            found = beside.submit(digest, directory / ADAPTER_WEIGHTS)
            policy = self._loaded(name, directory)
        try:
            policy.digest = found.result()
            if probe is not None and probe.digest not in ("", policy.digest):
                raise WeightError(
                    f"the adapter of {name}: {directory / ADAPTER_WEIGHTS} is another version's than the "
                    "trainer saved under this name; its SHA-256 differs from the probe's"
                )
            difference = self._check_first_briefly(policy, probe)
        except WeightError:
            self._remove(policy)
            raise
        self._held[name] = policy
        return difference

    def drop(self, name: str) -> None:
        """Let adapter ``name`` go; none of its requests may be running."""
        self._remove(self._held.pop(name))

    def size(self) -> int:
        """Bytes of the adapters' weights in the engine: the slots, and what vLLM keeps beside them."""
        return sum(self._engine.collective_rpc(_adapter_bytes))

    def _loaded(self, name: str, directory: Path) -> _Policy:
        from safetensors import SafetensorError
        from vllm.lora.request import LoRARequest

        number = next(self._numbers)
        # The prefix cache knows an adapter by its name: another one never reads what this one left.
        policy = _Policy(name, LoRARequest(f"{name}#{number}", number, str(directory)), self._text, [])
        try:
            self._engine.add_lora(policy.lora)
            self._engine.collective_rpc(_keep_slot_alone, args=(number,))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            self._remove(policy)
            raise WeightError(
                f"the adapter of {name} does not load from {directory / ADAPTER} and {ADAPTER_WEIGHTS}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return policy

    def _remove(self, policy: _Policy) -> None:
        self._engine.remove_lora(policy.lora.lora_int_id)

    def _check_first_briefly(self, new: _Policy, probe: Probe | None) -> float:
        """By the brief part of a probe, which takes as little of a step as it can; by the whole where that
        does not do: so few tokens may differ by more than many."""
        if probe is not None and probe.brief is not None:
            try:
                return self._check(new, probe.brief)
            except WeightError:
                pass
        return self._check(new, probe)

    def _check(self, new: _Policy, probe: Probe | None) -> float:
        """Compute all policies in one batch; ``new`` knows its own text when this returns."""
        text = self._text if probe is None else probe_text(probe, self._longest)
        alone = self._together([(text, new.lora)])[0] if probe is None else None
        known = [*self._held.values(), self._base]
        theirs = [(other.text, other.lora) for other in known]
        crossed = [(other.text[:_CROSSED], new.lora) for other in self._held.values()]
        own, *more = self._together([(text, new.lora), *theirs, *crossed])
        for other, told in zip(known, more, strict=False):
            self._same(other.name, new.name, told, other.logprobs)
        for other, told, by_new in zip(self._held.values(), more, more[len(known) :], strict=False):
            self._apart(other, new, told, by_new)
        new.text, new.logprobs = text[:COMPARED], own[: COMPARED - 1]
        if alone is not None:
            self._same(new.name, new.name, own, alone)
            return 0.0
        assert probe is not None
        difference = mean_gap(own[len(probe.prompt_token_ids) - 1 :], probe.logprobs)
        if not difference <= self._tolerance:
            raise WeightError(
                f"the adapter of {new.name}: the probe's log-probabilities differ by {difference:.4g} on "
                f"average, more than engine.probe_tolerance={self._tolerance:g}; it is another adapter or "
                "base than the trainer's, or engine.dtype is too coarse for the tolerance"
            )
        return difference

    def _same(self, name: str, new: str, told: Sequence[float], before: Sequence[float]) -> None:
        difference, most = mean_gap(told, before), self._tolerance / _COMPANY
        if not difference <= most:
            raise WeightError(
                f"in one batch with the adapter of {new}, {name} is computed as something else: its "
                f"log-probabilities differ by {difference:.4g} on average from those alone, more than "
                f"{most:.4g}; this vLLM mixes up adapters: load versions merged"
            )

    def _apart(self, known: _Policy, new: _Policy, told: Sequence[float], by_new: Sequence[float]) -> None:
        """See that ``new`` computes the text of ``known`` as something else than ``known`` does."""
        noise = mean_gap(told[: _CROSSED - 1], known.logprobs)
        if mean_gap(by_new, told) <= max(noise / 2, _ALIKE) and new.digest != known.digest:
            raise WeightError(
                f"in one batch, the adapter of {new.name} and {known.name} are computed as the same: "
                "their weights differ, and their log-probabilities do not; this vLLM mixes up adapters, or "
                "the two are too alike for engine.dtype: load versions merged"
            )

    def _together(self, asked: Sequence[tuple[Sequence[int], Any]]) -> list[list[float]]:
        """Log-probability (nats) of each token but the first of each text, with its adapter, all of them
        computed in the same step."""
        while True:
            texts = {f"check-{next(self._asks)}": one for one in asked}
            for name, (ids, lora) in texts.items():
                self._engine.add_request(
                    name, {"prompt_token_ids": list(ids)}, reading(), lora_request=lora
                )
            found: dict[str, Any] = {}
            while not found:
                for output in self._engine.step():
                    if output.request_id in texts:
                        found[output.request_id] = output
                    else:
                        self._passed.append(output)
            if len(found) == len(texts):
                return [given_logprobs(found[name], ids, 1) for name, (ids, _) in texts.items()]
            # So many requests run that not all were begun at once; some of those end with each step.
            self._engine.abort_request([name for name in texts if name not in found])


def _keep_slot_alone(worker: Any, number: int) -> None:
    """On CPUs, where the slot is in the same memory, let go of the copy that vLLM would fill a slot from
    anew: no adapter is ever without one."""
    if worker.device.type == "cpu":
        _manager(worker).get_adapter(number).loras.clear()


def _adapter_bytes(worker: Any) -> int:
    manager = _manager(worker)
    slots = [one for module in manager.modules.values() for one in _slots(module)]
    copies = [
        half
        for adapter in manager.list_adapters().values()
        for layer in adapter.loras.values()
        for halves in (layer.lora_a, layer.lora_b)
        for half in (halves if isinstance(halves, list) else [halves])
    ]
    return sum(one.nbytes for one in (*slots, *copies) if one is not None)


def _slots(module: Any) -> tuple[Any, ...]:
    """The matrices of all slots of a layer."""
    return (*module.lora_a_stacked, *module.lora_b_stacked)


def _manager(worker: Any) -> Any:
    return worker.model_runner.lora_manager._adapter_manager


def probe_text(probe: Probe, longest: int) -> list[int]:
    """The token ids of a probe, as far as ``longest`` has room for them and one more.

    Raises:
        WeightError: none of its answer has, or its prompt is empty.
    """
    ids = [*probe.prompt_token_ids, *probe.token_ids][: longest - 1]
    first = len(probe.prompt_token_ids)
    if first == 0 or len(ids) <= first:
        raise WeightError(
            f"the probe's prompt has {first} tokens and leaves none of its answer within "
            f"engine.max_model_len={longest}; give a shorter, non-empty prompt"
        )
    return ids


def mean_gap(measured: Sequence[float], expected: Sequence[float]) -> float:
    """Mean |difference|, as far as both reach."""
    differences = [abs(one - other) for one, other in zip(measured, expected, strict=False)]
    return sum(differences) / len(differences)


def given_logprobs(output: Any, ids: Sequence[int], first: int) -> list[float]:
    """Log-probability (nats) of each token of ``ids`` from place ``first`` on."""
    measured = output.prompt_logprobs
    return [float(measured[place][ids[place]].logprob) for place in range(first, len(ids))]
