"""What devices can do at most, by their makers' data sheets, and what share of it is counted on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from raylla.errors import ConfigError
from raylla.precision import Precision, chosen, unit

GB = 1e9


@dataclass(frozen=True, slots=True)
class Shares:
    """What is reached of a device's best: its products by a forward pass over many tokens (``prefill``), by
    a decoding step, which has few rows (``thin``), and by training (``train``); its bandwidth by decoding;
    its link. An assumption for GPUs, to be replaced by what `raylla plan --against` says of a run there."""

    prefill: float = 0.5
    thin: float = 0.5
    decode: float = 0.6
    train: float = 0.4
    link: float = 0.6


@dataclass(frozen=True, slots=True)
class Device:
    """Memory in bytes; dense FLOP/s, of GPUs in bfloat16; bytes/s of its memory and of its link to its
    neighbours."""

    memory: float
    flops: float
    bandwidth: float
    link: float
    shares: Shares = Shares()
    gpu: bool = True


GPUS = {
    "a100": Device(80 * GB, 312e12, 2.04e12, 300 * GB),
    "h100": Device(80 * GB, 989e12, 3.35e12, 450 * GB),
    "h200": Device(141 * GB, 989e12, 4.8e12, 450 * GB),
    "b200": Device(180 * GB, 2250e12, 8e12, 900 * GB),
    "l40s": Device(48 * GB, 362e12, 0.864e12, 32 * GB),
}

CORE = Device(12 * GB, 75e9, 10 * GB, 5 * GB, Shares(train=0.45), gpu=False)
"""One CPU core in float32, for groups without GPUs: about what two AVX2 units do at 2.3 GHz."""

WIDE_CORE = replace(CORE, flops=150e9, bandwidth=20 * GB)
"""One that has AVX512, in float32."""

HALF_CORE = replace(WIDE_CORE, flops=640e9, shares=Shares(thin=0.24, train=0.166))
"""The same in bfloat16, which it multiplies itself. Its shares are those of two runs of SmolLM2 on such
cores (docs/scaling.md)."""


DISK = 2 * GB
"""Bytes/s of the run directories' file system."""

NETWORK = 10 * GB
"""Bytes/s between machines."""


def width(precision: Precision | Literal["auto"], on_gpu: bool) -> int:
    """Bytes of an element; on cores "auto" is what this machine's processor computes in."""
    return 4 if chosen(precision, on_gpu) == "float32" else 2


def core(precision: Precision | Literal["auto"]) -> Device:
    """A core of this machine that computes in ``precision``."""
    if unit() is None:
        return CORE
    return WIDE_CORE if chosen(precision, False) == "float32" else HALF_CORE


def gpu(name: str) -> Device:
    """A GPU by name.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in GPUS:
        raise ConfigError(f"--gpu {name}: there is {', '.join(GPUS)}")
    return GPUS[name]
