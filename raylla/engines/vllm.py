"""vLLM in this process: one engine, stepped by whoever asks it for texts.

The only file that imports vllm, and only inside the constructor: its environment must be set
first, and the driver must be able to import everything else without it.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raylla import precision
from raylla.config import Engine as Settings
from raylla.config import Sampling
from raylla.engines.chat import chat_format, prompt_ids
from raylla.engines.protocol import (
    Completion,
    Generated,
    Given,
    Probe,
    Request,
    Scored,
    Weights,
    choice_ids,
)
from raylla.engines.sampled import MOST_TOP_K, likeliest, sampling_logprobs
from raylla.errors import ConfigError, WeightError
from raylla.models import HEAD, local, renamed, shapes, tied
from raylla.records import Ids

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a second process costs 20 s of start and a hop per step
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines share one machine's cores
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
BATCHED_TOKENS = 8192


class VllmEngine:
    """An `engines.protocol.Engine` on vLLM; on a CPU or a GPU, whichever this vLLM is built for.

    On float32 CPU the same (request, seed) gives the same text in any company and order; on a GPU
    the kernels' sums depend on the batch, so that near-ties may fall differently.

    Args:
        model_path: whatever `models.resolve` knows: a model in safetensors, with its tokenizer, or an
            adapter, which is merged with its base.
        settings: see `config.Engine`; lengths in tokens.
        seed: of the engine; requests carry their own.

    Raises:
        ConfigError: there is no such model, or vLLM does not take it with these settings.
        WeightError: its files cannot be read.
    """

    def __init__(self, model_path: str, settings: Settings, seed: int) -> None:
        self._settings = settings
        with local(model_path) as directory:
            given = engine_arguments(str(directory), settings, seed)
            known = precision.PROBE_TOLERANCE[given["dtype"]]
            self._tolerance = known if settings.probe_tolerance is None else settings.probe_tolerance
            from vllm import LLM

            self._shapes = shapes(directory)
            head_tied = tied(directory)
            try:
                self._llm = LLM(**given)
            except ValueError as error:  # pydantic's, too: most often of the config, before anything loads
                raise ConfigError(
                    f"vLLM refuses the model at {model_path} with these engine settings: {error}"
                ) from error
        self._headless = head_tied and not all(self._llm.collective_rpc(_has_head))
        self._engine = self._llm.llm_engine
        self._tokenizer = self._llm.get_tokenizer()
        chat_format(self._tokenizer)  # says now if there is none
        self._ends = _ends(self._tokenizer, self._llm.llm_engine.model_config)
        self._ids = itertools.count()

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
                params = _choosing(choices) if choices else sampling_params(request, sampling)
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
                reading = _reading(likeliest(one.sampling) if one.sampling else 0)
                running[self._submit(ids, reading)] = one, ids, len(prompt)
            while running:
                for output in self._engine.step():
                    yield self._scored(output, *running.pop(output.request_id))
        finally:
            self._engine.abort_request(list(running))

    def load(self, weights: Weights, probe: Probe | None) -> float:
        """Take over ``weights`` in place, drop the prefix cache and measure against ``probe``.

        Returns the mean absolute difference of the probe's token log-probabilities (nats), 0 where
        there is no probe.

        Raises:
            WeightError: the weights are not this model's, or the difference exceeds
                ``engine.probe_tolerance``.
            RuntimeError: requests are unfinished (they would mix two versions).
        """
        self._refuse_if_busy("load")
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
        own, outside = np.array(_read(output, ids, first)), 0
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
        # The engine insists on sampling one token more than it is given.
        ids = [*probe.prompt_token_ids, *probe.token_ids][: self._settings.max_model_len - 1]
        first = len(probe.prompt_token_ids)
        if first == 0 or len(ids) <= first:
            raise WeightError(
                f"the probe's prompt has {first} tokens and leaves none of its answer within "
                f"engine.max_model_len={self._settings.max_model_len}; give a shorter, non-empty prompt"
            )
        self._submit(ids, _reading())
        outputs: list[Any] = []
        while not outputs:
            outputs = self._engine.step()
        measured = _read(outputs[0], ids, first)
        differences = [abs(one - expected) for one, expected in zip(measured, probe.logprobs, strict=False)]
        return sum(differences) / len(differences)

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

    def _submit(self, prompt: list[int], params: Any) -> str:
        name = str(next(self._ids))
        self._engine.add_request(name, {"prompt_token_ids": prompt}, params)
        return name

    def _refuse_if_busy(self, what: str) -> None:
        if self._engine.has_unfinished_requests():
            count = self._engine.get_num_unfinished_requests()
            raise RuntimeError(f"{what} was called while {count} requests are unfinished")


def engine_arguments(model_path: str, settings: Settings, seed: int) -> dict[str, Any]:
    """vLLM's own arguments for ``settings``; sets the environment that vllm must be imported in."""
    for name, value in list(os.environ.items()):
        # Kubernetes puts the address of a service named vllm (tcp://10.0.0.1:80) where vLLM reads a port.
        if name.startswith("VLLM_") and name.endswith("_PORT") and not value.isdecimal():
            del os.environ[name]
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm.platforms import current_platform

    memory: dict[str, Any] = (
        {"kv_cache_memory_bytes": settings.kv_cache_mib * 2**20}
        if current_platform.is_cpu()
        else {"gpu_memory_utilization": settings.gpu_memory_utilization}
    )
    return memory | {
        "model": model_path,
        "dtype": precision.chosen(settings.dtype, not current_platform.is_cpu()),
        "seed": seed,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "tensor_parallel_size": settings.tensor_parallel,
        "distributed_executor_backend": "uni" if settings.tensor_parallel == 1 else "mp",
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "block_size": settings.block_size,
        "enable_prefix_caching": True,
        "enforce_eager": settings.enforce_eager,
        # A seeded request whose prefill is cut crashes the CPU sampler (a CPU generator cannot
        # be rewound), so that no prompt may ever need two steps.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(settings.max_model_len, BATCHED_TOKENS),
        "max_logprobs": MOST_TOP_K,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def sampling_params(request: Request, sampling: Sampling) -> Any:
    """One request for all draws, so that the prompt is computed once; vLLM seeds draw d by seed + d."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=request.n if sampling.temperature > 0 else 1,
        seed=request.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,  # once at the end, not at each token
        # The sampled tokens' own, of which only the sum is kept; flat: no object for every token.
        logprobs=0 if request.logprobs else None,
        flat_logprobs=True,
    )


def _choosing(choices: Sequence[int]) -> Any:
    """Parameters of a request that asks how probable each of ``choices`` (token ids) is.

    vLLM gives the log-probabilities of just these tokens, of the whole vocabulary's softmax and before
    temperature and cuts (its ``raw_logprobs``); which token it generates is no matter.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0,
        max_tokens=1,
        logprob_token_ids=list(choices),
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,
    )


def _reading(others: int = 0) -> Any:
    """Parameters of a request that is only read, not answered; with the log-probabilities of so many of the
    likeliest ``others`` at each place."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0, max_tokens=1, prompt_logprobs=others, detokenize=False, flat_logprobs=True
    )


def _ends(tokenizer: Any, settings: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model's generation config names."""
    named = settings.try_get_generation_config().get("eos_token_id")
    more = named if isinstance(named, list) else [named]
    return frozenset(one for one in (tokenizer.eos_token_id, *more) if one is not None)


def _read(output: Any, ids: Sequence[int], first: int) -> list[float]:
    """Log-probability (nats) of each token of ``ids`` from place ``first`` on."""
    measured = output.prompt_logprobs
    return [float(measured[place][ids[place]].logprob) for place in range(first, len(ids))]


def _has_head(worker: Any) -> bool:
    """Whether vLLM's model takes a head; some families read a tied one from the embeddings instead."""
    return hasattr(worker.get_model(), "lm_head")


def _tensors(weights: Mapping[str, Any]) -> list[tuple[str, Any]]:
    import torch

    with warnings.catch_warnings():
        # Arrays out of Ray's object store are read-only; the engine copies from them, never into them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return [(name, torch.from_numpy(array)) for name, array in weights.items()]
