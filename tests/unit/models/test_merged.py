from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylla.errors import ConfigError, StorageError
from raylla.models import local, merged, read_weights
from raylla.policy.groups import TokenGroup
from raylla.policy.saving import probe
from raylla.reward.encoder import Encoder

from .conftest import Adapt

PROMPT, ANSWER = (5, 6, 7), (8, 9, 10, 11)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([PROMPT + ANSWER])).logits
    return found


def test_an_adapter_becomes_a_whole_model_once(
    tiny_model: Path, tmp_path: Path, cache: Path, adapt: Adapt
) -> None:
    theirs = adapt(tiny_model, tmp_path / "adapter")
    with local(tmp_path / "adapter") as first:
        ours = AutoModelForCausalLM.from_pretrained(first)
        assert ours.dtype == torch.float32
        assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
        words = AutoTokenizer.from_pretrained(first)
        assert words.encode("a cup of tea") == AutoTokenizer.from_pretrained(tiny_model).encode(
            "a cup of tea"
        )
        assert not (first / "adapter_config.json").exists()
        made = (first / "model.safetensors").stat()
    with local(tmp_path / "adapter") as second:
        assert second == first
        assert (second / "model.safetensors").stat().st_ino == made.st_ino
    assert [one.name for one in (cache / "merged").iterdir() if one.is_dir()] == [first.name]
    assert set(read_weights(first)) == set(read_weights(tmp_path / "adapter"))


def test_another_adapter_or_base_is_another_model(tiny_model: Path, tmp_path: Path, adapt: Adapt) -> None:
    adapt(tiny_model, tmp_path / "adapter")
    with local(tmp_path / "adapter") as first:
        pass
    adapt(tiny_model, tmp_path / "adapter", r=2)
    with local(tmp_path / "adapter") as second:
        assert second != first


def test_an_adapter_s_own_tokenizer_counts(tiny_model: Path, tmp_path: Path, adapt: Adapt) -> None:
    adapt(tiny_model, tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ 'mine' }}")
    with local(tmp_path / "adapter") as place:
        words = AutoTokenizer.from_pretrained(place)
    assert words.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "mine"


def test_the_probe_of_an_adapter_is_its_merged_model_s(
    tiny_model: Path, tmp_path: Path, adapt: Adapt
) -> None:
    theirs = adapt(tiny_model, tmp_path / "adapter")
    found = probe(tmp_path / "adapter", TokenGroup(PROMPT, (ANSWER, PROMPT)))
    wanted = logits(theirs)[0].log_softmax(-1)
    chosen = [float(wanted[len(PROMPT) - 1 + place, token]) for place, token in enumerate(ANSWER)]
    assert found.logprobs == pytest.approx(chosen, abs=1e-5)


def test_two_processes_make_one_model(tiny_model: Path, tmp_path: Path, cache: Path, adapt: Adapt) -> None:
    adapt(tiny_model, tmp_path / "adapter")
    code = (
        "import sys\nfrom raylla.models import local\n"
        "with local(sys.argv[1]) as place:\n    print(place, (place / 'model.safetensors').stat().st_ino)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "adapter")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(said) == 1


def test_only_the_last_used_are_kept(
    tiny_model: Path, tmp_path: Path, cache: Path, adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "KEPT", 2)
    for n in (1, 2, 3, 4):
        adapt(tiny_model, tmp_path / f"a{n}", r=n)
    made: list[Path] = []
    with local(tmp_path / "a1") as held:
        os.utime(held, (1, 1))
        for n in (2, 3, 4):
            with local(tmp_path / f"a{n}") as place:
                os.utime(place, (n, n))
                made.append(place)
        assert held.is_dir(), "somebody reads it"
    assert [place.is_dir() for place in made] == [False, True, True]


def test_a_full_disk_leaves_nothing(
    tiny_model: Path, tmp_path: Path, cache: Path, adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(tiny_model, tmp_path / "adapter")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(merged, "save_file", full)
        with (
            pytest.raises(StorageError, match=r"No space left.*RAYLLA_CACHE"),
            local(tmp_path / "adapter"),
        ):
            pass
    assert not [one for one in (cache / "merged").iterdir() if one.is_dir()]
    with local(tmp_path / "adapter") as place:
        assert (place / "model.safetensors").is_file()


def test_hub_names_become_directories(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(tiny_model))
    with local("tea/leaves") as place:
        assert place == tiny_model
    assert Encoder("tea/leaves").dim == 128

    def refuse(name: str) -> str:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"'tea/leaves'.*does not give it: offline"), local("tea/leaves"):
        pass
