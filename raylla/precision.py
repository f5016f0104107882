"""In which numbers a processor computes, and how far they take an engine from float32."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]

PROBE_TOLERANCE: dict[Precision, float] = {"float32": 0.01, "bfloat16": 0.06, "float16": 0.03}
"""Largest mean |difference| of an answer's token log-probabilities (nats) between an engine and a float32
forward of the same weights.  Measured with vLLM 0.32 on CPUs, 24 answers of a model of 135 M parameters:
0.000 in float32, 0.019 to 0.048 in bfloat16; float16, with three bits more, was not measured."""

UNITS = ("amx_bf16", "avx512_bf16")
"""Flags of processors that multiply in bfloat16. Others imitate it, tens of times slower than float32."""
_CPUINFO = Path("/proc/cpuinfo")


def chosen(setting: Precision | Literal["auto"], gpu: bool) -> Precision:
    """``setting``, and for "auto" the quicker of bfloat16 and float32 on this machine."""
    if setting != "auto":
        return setting
    return "bfloat16" if gpu or unit() is not None else "float32"


def unit() -> str | None:
    """The flag by which this machine's processor multiplies in bfloat16, or none."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return None
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return next((name for name in UNITS if name in flags), None)


def explained(setting: Precision | Literal["auto"], gpus: bool) -> str:
    """``setting`` for a reader, with what "auto" comes to here and why."""
    if setting != "auto":
        return setting
    if gpus:
        return "auto: bfloat16 on GPUs"
    found = unit()
    return f"auto: bfloat16 here ({found})" if found else f"auto: float32 here (none of {', '.join(UNITS)})"
