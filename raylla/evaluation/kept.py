"""What an evaluation was told by engines and judges, kept in its run, so that one that is stopped, or asked
for more, pays for what is new alone.

    RUN/evaluation/DIGEST.jsonl    a line for each answer, joint answer, judgement, score and measured time

The digest covers what they depend on beside the run itself: the models, how they are sampled, and the
packages' versions.  Whatever has another digest is never read.  A judgement is its judge's: under another
judge the answers stay, and are judged anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from raylla.actors.judge import Judgement
from raylla.config import Config
from raylla.engines.protocol import Aggregated, Generated, Scored
from raylla.runs.state import Run, package_versions
from raylla.storage import writing
from raylla.strictjson import dumps

PLACE = "evaluation"
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Kind(Generic[_Value]):
    """One sort of what is kept, and how it becomes JSON."""

    name: str
    form: TypeAdapter[_Value]


ANSWERS = Kind("answers", TypeAdapter(Generated))
JOINT_ANSWERS = Kind("joint-answers", TypeAdapter(Aggregated))
JUDGEMENTS = Kind("judgements", TypeAdapter(Judgement))
SCORES = Kind("scores", TypeAdapter(Scored))
SECONDS = Kind("seconds", TypeAdapter(float))


def kept(run: Run, config: Config) -> Kept:
    """What was kept of evaluations of ``run`` with the models, and the judge, of ``config``.

    Raises:
        StorageError: the run's directory cannot be written.
    """
    tree = config.model_dump(mode="json")
    about = {name: tree[name] for name in ("seed", "ad_llm", "engine", "pctr")}
    about["versions"] = package_versions()
    return Kept(run.part(PLACE) / f"{_digest(about)[:12]}.jsonl", _digest(tree["user_llm"])[:12])


class Kept:
    """Values by kind and key, in memory and, where there is a ``path``, in a file that only grows.

    A line that a killed process left half written is passed over. Judgements are those of ``judge``.
    """

    def __init__(self, path: Path | None = None, judge: str = "") -> None:
        self._path, self._judge = path, judge
        self._values: dict[tuple[str, str], Any] = {}
        self._unread: set[tuple[str, str]] = set()
        self._new: set[tuple[str, str]] = set()
        self.recalled = 0
        """Values asked for since `begin` that had been there before."""
        if path is None:
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                file.seek(0)
                lines = file.read().split(b"\n")
                if lines[-1]:
                    file.write(b"\n")
        for line in lines:
            self._read(line)

    def begin(self) -> None:
        """Count from here what is `recalled`."""
        self._new.clear()
        self.recalled = 0

    def holds(self, kind: Kind[Any], key: object) -> bool:
        """Whether there is a value of this kind and key."""
        return self._name(kind, key) in self._values

    def get(self, kind: Kind[_Value], key: object) -> _Value:
        """The value of a kind and key, which is there."""
        name = self._name(kind, key)
        if name in self._unread:
            self._unread.remove(name)
            self._values[name] = kind.form.validate_python(self._values[name])
        self.recalled += name not in self._new
        value: _Value = self._values[name]
        return value

    def put(self, kind: Kind[_Value], key: object, value: _Value) -> None:
        """Keep a value.

        Raises:
            StorageError: the disk is full, read-only or gone.
        """
        name = self._name(kind, key)
        self._values[name] = value
        self._new.add(name)
        if self._path is not None:
            told = kind.form.dump_python(value, mode="json", fallback=list)  # token ids are `Ids`
            line = dumps({"kind": name[0], "key": name[1], "value": told})
            with writing(self._path), self._path.open("a") as file:
                file.write(line + "\n")

    def _read(self, line: bytes) -> None:
        try:
            read: Mapping[str, Any] = json.loads(line)
            name = (read["kind"], read["key"])
            self._values[name] = read["value"]
        except (ValueError, KeyError, TypeError):
            return
        self._unread.add(name)

    def _name(self, kind: Kind[Any], key: object) -> tuple[str, str]:
        whole = [self._judge, key] if kind is JUDGEMENTS else key
        return kind.name, _digest(whole)[:24]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
