"""Which numbers a processor computes in."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylla import precision
from raylla.config import parse_config


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("fpu avx2 fma", "float32"),
        ("fpu avx512f avx512_bf16", "bfloat16"),
        ("fpu amx_bf16 amx_tile", "bfloat16"),
        ("fpu not_amx_bf16", "float32"),
    ],
)
def test_auto_is_what_the_processor_multiplies_in(
    flags: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    monkeypatch.setattr(precision, "_CPUINFO", info)
    assert precision.chosen("auto", gpu=False) == wanted
    assert precision.chosen("auto", gpu=True) == "bfloat16"
    assert precision.chosen("float16", gpu=False) == "float16"
    assert wanted in precision.explained("auto", gpus=False)


def test_a_machine_that_says_nothing_computes_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "absent")
    assert precision.chosen("auto", gpu=False) == "float32"


def test_the_probe_is_wider_where_numbers_are_coarser() -> None:
    assert parse_config({}, "test").engine.probe_tolerance is None
    assert precision.PROBE_TOLERANCE["float32"] < 0.019
    assert precision.PROBE_TOLERANCE["bfloat16"] > 0.048
