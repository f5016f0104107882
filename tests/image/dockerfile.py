"""The steps of a Dockerfile, and who carries them out: as much of the language as that of cluster/ uses."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from string import Template
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """One instruction: its line in the file, its name, its text with continued lines joined."""

    line: int
    name: str
    text: str


@dataclass
class Image:
    """What the steps so far have set for the next one, and for whoever starts the image."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: PurePosixPath = field(default_factory=lambda: PurePosixPath("/"))

    def at(self, path: str | PurePosixPath) -> Path:
        """Where a path of the image, below its folder unless absolute, lies on this machine."""
        return self.root / (self.folder / path).relative_to("/")


class Machine(Protocol):
    """Who has the files and runs the commands of an image."""

    def start(self, image: Image, base: str) -> None:
        """Fill the image's root with a base image."""

    def run(self, image: Image, command: str) -> None:
        """Run a line of the shell as the image's user; raises CalledProcessError where it fails."""

    def own(self, image: Image, path: Path, owner: str) -> None:
        """Give a file or folder, with all below it, to a user of the image."""


def steps(text: str) -> Iterator[Step]:
    """Instructions in their order. Comments may stand between continued lines, as Docker has it."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun or number
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            name, _, rest = "".join(parts).partition(" ")
            yield Step(begun, name, rest.strip())
            begun, parts = 0, []


def sent(path: str, rules: list[str]) -> bool:
    """Whether a .dockerignore lets a file into a build: the last rule for it or a folder of it decides."""
    levels = [str(level) for level in [PurePosixPath(path), *PurePosixPath(path).parents][:-1]]
    kept = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        anywhere = pattern.removeprefix("**/")
        names = [level.rpartition("/")[2] for level in levels] if anywhere != pattern else levels
        if any(fnmatch.fnmatchcase(name, anywhere) for name in names):
            kept = rule.startswith("!")
    return kept


def carry_out(file: Path, context: Path, image: Image, machine: Machine, chosen: Mapping[str, str]) -> None:
    """All steps of a Dockerfile on a machine. ``chosen`` are the build arguments.

    Raises ValueError for an instruction or an option that this module does not know, KeyError for an unset
    variable, FileNotFoundError for a source of COPY that is not sent.
    """
    rules = Path(f"{file}.dockerignore").read_text().split()
    for step in steps(file.read_text()):
        expanded = Template(step.text)
        known = image.variables | image.arguments
        match step.name:
            case "FROM":
                machine.start(image, step.text)
            case "ARG":
                name, _, default = step.text.partition("=")
                image.arguments[name] = chosen.get(name, default)
            case "ENV":
                for pair in shlex.split(expanded.substitute(known)):
                    name, _, value = pair.partition("=")
                    image.variables[name] = value
            case "USER":
                image.user = expanded.substitute(known)
            case "WORKDIR":
                image.folder /= expanded.substitute(known)
                image.at(".").mkdir(parents=True, exist_ok=True)
            case "RUN":
                machine.run(image, step.text)
            case "COPY":
                _copy(shlex.split(expanded.substitute(known)), context, rules, image, machine)
            case _:
                raise ValueError(f"{file}, line {step.line}: {step.name} is not carried out")


def _copy(words: list[str], context: Path, rules: list[str], image: Image, machine: Machine) -> None:
    """COPY [--chown=USER] SOURCE... TARGET: a folder's content, or files into a folder."""
    options = [word for word in words if word.startswith("--")]
    owner = re.fullmatch(r"--chown=(\w+)", " ".join(options) or "--chown=root")
    if not owner:
        raise ValueError(f"COPY {' '.join(options)}: only --chown=USER is carried out")
    *sources, target = (word for word in words if not word.startswith("--"))
    for source in sources:
        origin = context / source
        goal = image.at(target) if origin.is_dir() else image.at(target) / origin.name
        files = [path for path in [origin, *origin.rglob("*")] if path.is_file()]
        files = [path for path in files if sent(str(path.relative_to(context)), rules)]
        if not files:
            raise FileNotFoundError(f"COPY {source}: nothing of it is sent to the build")
        for path in files:
            place = goal / path.relative_to(origin)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)
        machine.own(image, goal, owner[1])
