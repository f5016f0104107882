"""What vLLM is told: how an engine is made, and what each kind of request asks of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from raylla import precision
from raylla.config import Engine as Settings
from raylla.config import Sampling
from raylla.engines.aggregating import LISTED
from raylla.engines.protocol import AdapterRoom, Request
from raylla.engines.sampled import MOST_TOP_K
from raylla.errors import ConfigError
from raylla.models.quiet import quiet

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a second process costs 20 s of start and a hop per step
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines share one machine's cores
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
BATCHED_TOKENS = 8192


def engine_arguments(model_path: str, settings: Settings, seed: int) -> dict[str, Any]:
    """vLLM's own arguments for ``settings``; sets the environment that vllm must be imported in."""
    quiet()
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


def adapter_arguments(room: AdapterRoom, settings: Settings) -> dict[str, Any]:
    """vLLM's own arguments for ``room`` beside those of `engine_arguments`; where this vLLM is a CPU's, it
    computes adapters as `raylla.engines.grouped` does from here on.

    On GPUs a slot is left empty: no adapter is slot -1, which a kernel may take for the last one.

    Raises:
        ConfigError: vLLM has no room of that shape, or its processes would compute in their own way.
    """
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks
    from vllm.platforms import current_platform

    ranks = [rank for rank in get_args(MaxLoRARanks) if rank >= room.rank]
    if not ranks:
        raise ConfigError(f"lora.rank={room.rank} is more than vLLM computes with; serve versions merged")
    if settings.max_num_seqs < (least := rows_at_most(room)):
        raise ConfigError(
            f"engine.max_num_seqs={settings.max_num_seqs} does not hold the {least} rows in which the base "
            f"and {room.most} adapters are checked together; raise it"
        )
    slots = room.most + 1
    if current_platform.is_cpu():
        from raylla.engines.grouped import KERNEL

        if settings.tensor_parallel > 1:
            raise ConfigError(
                f"engine.tensor_parallel={settings.tensor_parallel}: adapters share an engine on CPUs in "
                "one process alone; set it to 1, or serve versions merged"
            )
        current_platform.get_punica_wrapper = lambda: KERNEL
        slots = room.most
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": slots,
        "max_lora_rank": min(ranks),
        "lora_target_modules": list(room.targets),
    }


def rows_at_most(room: AdapterRoom) -> int:
    """Rows of the batch in which an adapter is checked beside all others: each policy's own text, and the
    new one on that of every other adapter."""
    return 2 * room.most


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


def choosing(choices: Sequence[int]) -> Any:
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


def looking() -> Any:
    """Parameters of a request that asks what may come next."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0,
        max_tokens=1,
        logprobs=LISTED,
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,
    )


def reading(others: int = 0) -> Any:
    """Parameters of a request that is only read, not answered; with the log-probabilities of so many of the
    likeliest ``others`` at each place."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0, max_tokens=1, prompt_logprobs=others, detokenize=False, flat_logprobs=True
    )
