"""vLLM in this process: one engine, stepped by whoever asks it for texts.

This, `vllmparams` and `live` alone import vllm, and only inside functions: its environment must be set
first, and the driver must be able to import everything else without it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from raylla import precision
from raylla.config import Engine as Settings
from raylla.config import Sampling
from raylla.engines.aggregating import Joined, Joining, Listed, joined, write_jointly
from raylla.engines.chat import chat_format, prompt_ids
from raylla.engines.protocol import (
    AdapterRoom,
    Aggregate,
    Aggregated,
    Completion,
    Generated,
    Given,
    Probe,
    Request,
    Scored,
    Weights,
    choice_ids,
)
from raylla.engines.sampled import likeliest, sampling_logprobs
from raylla.engines.sharing import Sharing, given_logprobs, mean_gap, probe_text
from raylla.engines.vllmparams import (
    adapter_arguments,
    choosing,
    engine_arguments,
    looking,
    reading,
    sampling_params,
)
from raylla.errors import ConfigError, WeightError
from raylla.models import HEAD, Adapter, base, local, renamed, shapes, tied
from raylla.models.adapters import adapter_over
from raylla.models.libraries import uncollected
from raylla.models.places import is_adapter
from raylla.records import Ids

_TEXT = "A good answer names what the question asks for, says why, and is short: three sentences at most."
"""By which policies without a probe are told apart."""


class VllmEngine:
    """An `engines.protocol.Engine` on vLLM; on a CPU or a GPU, whichever this vLLM is built for.

    On float32 CPU the same (request, seed) gives the same text in any company and order; on a GPU
    the kernels' sums depend on the batch, so that near-ties may fall differently.

    Args:
        model_path: whatever `models.resolve` knows: a model in safetensors, with its tokenizer, or an
            adapter, which is merged with its base where there is no room for it.
        settings: see `config.Engine`; lengths in tokens.
        seed: of the engine; requests carry their own.
        room: for adapters over the base of ``model_path``, which is loaded once; none: weights are whole.

    Raises:
        ConfigError: there is no such model, or vLLM does not take it with these settings.
        WeightError: its files cannot be read.
    """

    def __init__(
        self, model_path: str, settings: Settings, seed: int, room: AdapterRoom | None = None
    ) -> None:
        self._settings = settings
        place = model_path if room is None else base(model_path, "model_path")
        with local(place) as directory:
            with uncollected():
                given = engine_arguments(str(directory), settings, seed)
                import torch
                from vllm import LLM
            if settings.enforce_eager:
                torch.compiler.set_stance("force_eager")  # vLLM compiles how it counts ranks nevertheless
            if room is not None:
                given |= adapter_arguments(room, settings)
            known = precision.PROBE_TOLERANCE[given["dtype"]]
            self._tolerance = known if settings.probe_tolerance is None else settings.probe_tolerance
            self._shapes = shapes(directory)
            head_tied = tied(directory)
            try:
                self._llm = LLM(**given)
            except ValueError as error:  # pydantic's, too: most often of the config, before anything loads
                raise ConfigError(
                    f"vLLM refuses the model at {model_path} with these engine settings: {error}"
                ) from error
            self._tokenizer = self._llm.get_tokenizer()
            # vLLM reads the generation config from the files at each call, and a bucket's copy goes.
            self._ends = _ends(self._tokenizer, self._llm.llm_engine.model_config)
        self._headless = head_tied and not all(self._llm.collective_rpc(_has_head))
        self._engine = self._llm.llm_engine
        self._block = settings.block_size
        chat_format(self._tokenizer)  # says now if there is none
        self._ids = itertools.count()
        self._current = ""
        """Name of the adapter that computes; none: the base, or whole weights."""
        self._sharing: Sharing | None = None
        if room is not None:
            text = self._tokenizer.encode(_TEXT, add_special_tokens=False)
            self._sharing = Sharing(self._engine, room, self._tolerance, text, settings.max_model_len)
            if is_adapter(model_path):
                self.load(adapter_over(place, model_path), None)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generated]:
        """Answer all requests together; yields each as soon as its last draw finishes.

        A prompt that leaves less than ``sampling.max_tokens`` of ``max_model_len`` comes back with
        ``error`` set. Closing the iterator drops what is unfinished.
        """
        self._refuse_if_busy("generate")
        running: dict[str, Request] = {}
        try:
            for request in requests:
                longest = 1 if request.choices else sampling.max_tokens
                prompt = self._prompt(request, self._settings.max_model_len - longest)
                error = self._refusal(len(prompt), longest)
                if error is not None:
                    yield Generated(request.id, Ids(prompt), (), error)
                    continue
                choices = self._choices(request)
                params = choosing(choices) if choices else sampling_params(request, sampling)
                running[self._submit(prompt, params)] = request
            while running:
                for output in self._engine.step():
                    yield self._generated(running.pop(output.request_id), output)
        finally:
            self._engine.abort_request(list(running))

    def score(self, given: Sequence[Given]) -> Iterator[Scored]:
        """How probable the weights find each answer; yields each as it finishes.

        Raises:
            ValueError: an answer is empty, or does not fit behind its prompt.
            ConfigError: its sampling's probabilities cannot be told.
        """
        self._refuse_if_busy("score")
        running: dict[str, tuple[Given, list[int], int]] = {}
        try:
            for one in given:
                prompt = self._prompt(one, one.room)
                answer = one.token_ids or self._tokenizer.encode(one.text, add_special_tokens=False)
                ids = [*prompt, *answer]
                if not answer or len(ids) >= self._settings.max_model_len:
                    raise ValueError(
                        f"answer {one.id} has {len(answer)} tokens, its prompt {len(prompt)}; "
                        f"give 1 or more, and less than engine.max_model_len="
                        f"{self._settings.max_model_len} together"
                    )
                asked = reading(likeliest(one.sampling) if one.sampling else 0)
                running[self._submit(ids, asked)] = one, ids, len(prompt)
            while running:
                for output in self._engine.step():
                    yield self._scored(output, *running.pop(output.request_id))
        finally:
            self._engine.abort_request(list(running))

    def aggregate(self, requests: Sequence[Aggregate], sampling: Sampling) -> Iterator[Aggregated]:
        """Texts that several prompts' models write together; yields each request's as they are done.

        As many are written side by side as the cache holds whole, for every token asks anew for the ends of
        all contexts.  Of these vLLM computes what the cache lacks: less than a block and what others wrote.
        """
        self._refuse_if_busy("aggregate")
        joining = Joining(self._ahead, self._text, self._ends, self._vocabulary, sampling)
        together: list[tuple[Aggregate, list[list[int]], list[Joined]]] = []
        used = 0
        for request in requests:
            prompts = self._bidders(request, sampling)
            error = self._refusal(max(map(len, prompts)), sampling.max_tokens)
            if error is not None:
                yield Aggregated(request.id, tuple(map(len, prompts)), (), error)
                continue
            bidding = sum(bid > 0 for bid in request.bids)
            room = sum(map(len, prompts)) + request.n * bidding * (sampling.max_tokens + self._block)
            if together and used + room > self._cache_tokens:
                yield from _written(together, joining)
                together, used = [], 0
            together.append((request, prompts, [Joined(request, d, prompts) for d in range(request.n)]))
            used += room
        yield from _written(together, joining)

    def load(self, weights: Weights | Adapter, probe: Probe | None) -> float:
        """Take over ``weights`` in place, drop the prefix cache and measure against ``probe``; an adapter
        beside the one that computes until then, which stays where it is refused, and no weights at all
        for its base alone.

        Returns the mean absolute difference of the probe's token log-probabilities (nats), 0 where
        there is no probe.

        Raises:
            WeightError: the weights are not this model's, or the difference exceeds
                ``engine.probe_tolerance``.
            RuntimeError: requests are unfinished (they would mix two versions).
        """
        self._refuse_if_busy("load")
        if isinstance(weights, Adapter) or self._sharing is not None:
            return self._exchange(weights, probe)
        weights = renamed(weights, self._shapes)
        self._check(weights)
        if self._headless:
            del weights[HEAD]
        # A list, not an iterator: tensor-parallel workers live in other processes.
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": _tensors(weights)})
        self._llm.reset_prefix_cache()
        if probe is None:
            return 0.0
        difference = self._measure(probe)
        if not difference <= self._tolerance:
            raise WeightError(
                f"after loading, the probe's log-probabilities differ by {difference:.4g} on average, more "
                f"than engine.probe_tolerance={self._tolerance:g}; the engine does not hold "
                "the trainer's weights, or engine.dtype is too coarse for the tolerance"
            )
        return difference

    def _exchange(self, weights: Weights | Adapter, probe: Probe | None) -> float:
        """Compute with an adapter, or with the base alone, in the place of the adapter before."""
        if self._sharing is not None and not weights:
            self._current = self._let_go()
            return 0.0 if probe is None else self._measure(probe)
        if self._sharing is None or not isinstance(weights, Adapter):
            kind = "an adapter" if isinstance(weights, Adapter) else "a whole model"
            raise WeightError(
                f"{kind} is handed to an engine that has no room for one; open another engine"
            )
        name = f"version-{next(self._ids)}"
        with TemporaryDirectory(prefix="raylla-adapter-") as folder:
            weights.write(Path(folder))
            difference = self._sharing.hold(name, Path(folder), probe)
        self._let_go()
        self._current = name
        return difference

    def _let_go(self) -> str:
        if self._sharing is not None and self._current:
            self._sharing.drop(self._current)
        return ""

    def _check(self, weights: Weights) -> None:
        """Refuse what is not this model's whole set of parameters, while the old ones still stand.

        vLLM keeps the old values of what it is not given, without a word, and is left with half a
        model where a name or shape does not fit.
        """
        given = {name: tuple(array.shape) for name, array in weights.items()}
        wrong = sorted(
            name for name in given.keys() | self._shapes if given.get(name) != self._shapes.get(name)
        )
        if wrong:
            name = wrong[0]
            raise WeightError(
                f"{len(wrong)} weights are not as this model has them; {name} has shape "
                f"{given.get(name, 'none: it is missing')} and should have "
                f"{self._shapes.get(name, 'none: it is unknown')}; hand over exactly the model's "
                f"parameters, {HEAD} too where it is tied to the embeddings"
            )

    def _refusal(self, length: int, longest: int) -> str | None:
        """Why a prompt of ``length`` tokens cannot be answered with ``longest`` tokens, if it cannot."""
        room = self._settings.max_model_len - longest
        if 0 < length <= room:
            return None
        return (
            f"the prompt has {length} tokens and may have 1 to {room}: engine.max_model_len="
            f"{self._settings.max_model_len} less sampling.max_tokens={longest}; raise the "
            "first or lower the second"
        )

    def _prompt(self, asked: Request | Given, room: int) -> list[int]:
        """The prompt's token ids: those given, or of at most ``room`` tokens where turns may be cut."""
        if asked.prompt_token_ids:
            return list(asked.prompt_token_ids)
        return prompt_ids(self._tokenizer, asked.messages, asked.turns, room)

    def _scored(self, output: Any, one: Given, ids: Sequence[int], first: int) -> Scored:
        own, outside = np.array(given_logprobs(output, ids, first)), 0
        if one.sampling is not None:
            count, told = likeliest(one.sampling), output.prompt_logprobs
            best = [
                sorted((other.logprob for other in told[at].values()), reverse=True)[:count]
                for at in range(first, len(ids))
            ]
            own, outside = sampling_logprobs(own, best, one.sampling)
        return Scored(one.id, float(own.sum()), len(own), outside, ids[-1] in self._ends)

    def _choices(self, request: Request) -> tuple[int, ...]:
        return choice_ids(self._tokenizer, request.choices)

    def _measure(self, probe: Probe) -> float:
        ids = probe_text(probe, self._settings.max_model_len)
        self._submit(ids, reading())
        outputs: list[Any] = []
        while not outputs:
            outputs = self._engine.step()
        return mean_gap(given_logprobs(outputs[0], ids, len(probe.prompt_token_ids)), probe.logprobs)

    def _generated(self, request: Request, output: Any) -> Generated:
        draws = tuple(
            Completion(
                self._tokenizer.decode(draw.token_ids, skip_special_tokens=True),
                Ids(draw.token_ids),
                draw.finish_reason == "stop",
                draw.cumulative_logprob,
                tuple(float(draw.logprobs[0][one].logprob) for one in self._choices(request)),
            )
            for draw in output.outputs
        )
        # Greedy draws are all the same, and vLLM refuses to make more than one.
        return Generated(request.id, Ids(output.prompt_token_ids), draws * (request.n // len(draws)))

    @property
    def _vocabulary(self) -> int:
        return int(self._llm.model_config.get_vocab_size())

    @property
    def _cache_tokens(self) -> int:
        """Tokens that the prefix cache holds."""
        return int(self._engine.vllm_config.cache_config.num_gpu_blocks or 0) * self._block

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _bidders(self, request: Aggregate, sampling: Sampling) -> list[list[int]]:
        """Token ids of each bidder's prompt, none for who bids nothing."""
        room = self._settings.max_model_len - sampling.max_tokens
        return [
            prompt_ids(self._tokenizer, messages, request.turns, room) if bid > 0 else []
            for messages, bid in zip(request.prompts, request.bids, strict=True)
        ]

    def _ahead(self, contexts: Sequence[list[int]]) -> list[Listed]:
        """The likeliest next tokens after each of ``contexts``."""
        names = [self._submit(context, looking()) for context in contexts]
        found: dict[str, Listed] = {}
        try:
            while len(found) < len(names):
                for output in self._engine.step():
                    told = output.outputs[0].logprobs[0]
                    ids = np.array(list(told), dtype=np.int64)
                    found[output.request_id] = ids, np.array([float(one.logprob) for one in told.values()])
        finally:
            self._engine.abort_request([name for name in names if name not in found])
        return [found[name] for name in names]

    def _submit(self, prompt: list[int], params: Any) -> str:
        name = str(next(self._ids))
        lora = self._sharing.lora(self._current) if self._sharing is not None else None
        self._engine.add_request(name, {"prompt_token_ids": prompt}, params, lora_request=lora)
        return name

    def _refuse_if_busy(self, what: str) -> None:
        if self._engine.has_unfinished_requests():
            count = self._engine.get_num_unfinished_requests()
            raise RuntimeError(f"{what} was called while {count} requests are unfinished")


def _written(
    together: Sequence[tuple[Aggregate, list[list[int]], list[Joined]]], joining: Joining
) -> Iterator[Aggregated]:
    """What the texts of these requests become, written side by side."""
    write_jointly([text for _, _, texts in together for text in texts], joining)
    for request, prompts, texts in together:
        yield joined(request, prompts, texts)


def _ends(tokenizer: Any, settings: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model's generation config names."""
    named = settings.try_get_generation_config().get("eos_token_id")
    more = named if isinstance(named, list) else [named]
    return frozenset(one for one in (tokenizer.eos_token_id, *more) if one is not None)


def _has_head(worker: Any) -> bool:
    """Whether vLLM's model takes a head; some families read a tied one from the embeddings instead."""
    return hasattr(worker.get_model(), "lm_head")


def _tensors(weights: Mapping[str, Any]) -> list[tuple[str, Any]]:
    import torch

    with warnings.catch_warnings():
        # Arrays out of Ray's object store are read-only; the engine copies from them, never into them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return [(name, torch.from_numpy(array)) for name, array in weights.items()]
