"""cluster/Dockerfile: its steps in a plain folder, with stand-ins for apt-get and for the installers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from tests.image import __main__ as command
from tests.image.dockerfile import Image, Step, carry_out, sent, steps

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"

INSTALLER = """#!/bin/sh
echo "$*" >> {notes}
[ "$2" != venv ] || {{ mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/uv"; }}
"""
"""Stands for python3.11, and for what an environment made by it holds."""


class Plain:
    """A folder here. The shell only reads what root runs; what the user runs is run in the folder."""

    def __init__(self, tools: Path) -> None:
        self.base = ""
        self.owners: dict[str, str] = {}
        self.read: list[str] = []
        self._tools = tools

    def start(self, image: Image, base: str) -> None:
        self.base = base
        image.variables["PATH"] = f"{self._tools}:/usr/bin:/bin"

    def run(self, image: Image, command: str) -> None:
        subprocess.run(["sh", "-n", "-c", command], check=True)
        if image.user == "root":
            self.read.append(command)
        else:
            told = image.arguments | image.variables
            subprocess.run(["sh", "-ec", command], cwd=image.at("."), env=told, check=True)

    def own(self, image: Image, path: Path, owner: str) -> None:
        self.owners[str(path.relative_to(image.root))] = owner


def make(folder: Path, chosen: str) -> tuple[Image, Plain, list[str]]:
    """The image of a set, who made it, and what its installers were asked."""
    tools, notes = folder / "tools", folder / "notes"
    tools.mkdir()
    (tools / "python3.11").write_text(INSTALLER.format(notes=notes))
    (tools / "python3.11").chmod(0o755)
    image, machine = Image(folder / "root"), Plain(tools)
    carry_out(DOCKERFILE, ROOT, image, machine, {"SET": chosen})
    return image, machine, notes.read_text().splitlines()


@pytest.mark.parametrize("chosen", ["cpu", "cuda"])
def test_the_image_installs_its_set_as_its_user(tmp_path: Path, chosen: str) -> None:
    image, machine, asked = make(tmp_path, chosen)
    assert machine.base == "python:3.11-slim-bookworm"
    assert "-m venv .venv" in asked
    listed = f"requirements/{chosen}.txt"
    assert asked[-1].endswith(f"--build-constraints {listed} -r {listed} --editable .")
    assert (image.user, str(image.folder)) == ("raylla", "/opt/raylla")
    assert set(machine.owners.values()) == {"raylla"}
    (root,) = machine.read
    assert "useradd --uid 1000" in root
    assert root.endswith("chown raylla /runs /opt/raylla")
    assert image.variables["PATH"].startswith("/opt/raylla/.venv/bin:")
    kept = {path.relative_to(image.at(".")).parts[0] for path in image.at(".").rglob("*") if path.is_file()}
    assert not kept & {"tests", "docs", "cluster", ".git"}
    assert not list(image.root.rglob("__pycache__"))


@pytest.mark.slow
def test_the_image_holds_what_a_run_reads(tmp_path: Path) -> None:
    folder = make(tmp_path, "cpu")[0].at(".")
    code = "import raylla, jobs; from raylla.cli import app; print(raylla.__file__); app()"
    told = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code, "check", "configs/pocket.yaml"]
    done = subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(str(folder))
    build = "import setuptools.build_meta as build; print(build.prepare_metadata_for_build_editable('.'))"
    named = subprocess.run(
        [sys.executable, "-c", build], cwd=folder, capture_output=True, text=True, check=True
    )
    assert named.stdout.splitlines()[-1].startswith("raylla-")


def test_lines_are_joined_and_comments_are_not_steps() -> None:
    text = "# a\nFROM x\n\nRUN a \\\n# between\n  && b\nUSER y\n"
    assert list(steps(text)) == [Step(2, "FROM", "x"), Step(4, "RUN", "a   && b"), Step(7, "USER", "y")]


@pytest.mark.parametrize(
    ("path", "whether"),
    [
        ("a", True),
        ("b", False),
        ("a/c/d.py", True),
        ("a/c/__pycache__/d.pyc", False),
        ("__pycache__", False),
        ("b/a", False),
    ],
)
def test_the_last_rule_says_what_is_sent(path: str, whether: bool) -> None:
    assert sent(path, ["*", "!a", "**/__pycache__"]) is whether


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("HEALTHCHECK true", ValueError, "line 2: HEALTHCHECK is not carried out"),
        ("COPY --link a b", ValueError, "only --chown=USER is carried out"),
        ("COPY b b", FileNotFoundError, "COPY b: nothing of it is sent"),
        ("WORKDIR /$NOWHERE", KeyError, "NOWHERE"),
    ],
)
def test_what_cannot_be_carried_out_is_named(
    tmp_path: Path, line: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM x\n{line}\n")
    (tmp_path / "Dockerfile.dockerignore").write_text("*\n!a\n")
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(error, match=message):
        carry_out(tmp_path / "Dockerfile", tmp_path, Image(tmp_path / "root"), Plain(tmp_path), {})


def test_files_go_into_folders_and_folders_bring_their_content(tmp_path: Path) -> None:
    (tmp_path / "a" / "c").mkdir(parents=True)
    (tmp_path / "a" / "c" / "d").write_text("d")
    (tmp_path / "e").write_text("e")
    (tmp_path / "Dockerfile").write_text(
        "FROM x\nARG A=f\nWORKDIR /w\nCOPY --chown=u a $A\nCOPY --chown=v e ./\n"
    )
    (tmp_path / "Dockerfile.dockerignore").write_text("")
    image, machine = Image(tmp_path / "root"), Plain(tmp_path)
    carry_out(tmp_path / "Dockerfile", tmp_path, image, machine, {})
    assert image.folder == PurePosixPath("/w")
    assert (image.root / "w" / "f" / "c" / "d").read_text() == "d"
    assert (image.root / "w" / "e").read_text() == "e"
    assert machine.owners == {"w/f": "u", "w/e": "v"}


@pytest.mark.parametrize(
    ("user", "tool", "more", "words"),
    [
        (1000, "/debootstrap", (), "run it as root"),
        (0, None, (), "apt-get install debootstrap"),
        (0, "/debootstrap", ("--bind", "/none"), "--bind /none: give the absolute path"),
        (0, "/debootstrap", (), "File exists; give a folder that does not exist"),
    ],
)
def test_what_the_command_wants_is_named_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    user: int,
    tool: str | None,
    more: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("shutil.which", lambda _: tool)
    monkeypatch.setattr(sys, "argv", ["tests.image", str(tmp_path), *more])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert words in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
