"""Who judges: what an adapter says of the judges that it learned from, and whose clicks results count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from raylla.config import UserLlm
from raylla.errors import ConfigError, DataError
from raylla.models import resolve
from raylla.storage import exists, read_text, within
from raylla.strictjson import dumps

ABOUT = "judge.json"
"""File beside an adapter that says what it is taught by."""
CLICK_MODEL = "click model"


@dataclass(frozen=True, slots=True)
class Taught:
    """Whose decisions a judge learned, and which questions it did not see: the split's seed and share."""

    judges: tuple[str, ...]
    seed: int
    held_out: float


def write_taught(directory: Path, taught: Taught) -> None:
    """Put ``taught`` beside the adapter in ``directory``."""
    (directory / ABOUT).write_text(dumps(asdict(taught), indent=2) + "\n")


def read_taught(place: str) -> Taught | None:
    """What the model at ``place`` (as `models.resolve` gives it) was taught by, if it says so.

    Raises:
        DataError: the file is there and is not what `write_taught` writes.
    """
    file = within(place, ABOUT)
    if not exists(file):
        return None
    try:
        about = json.loads(read_text(file))
        judges, seed, held_out = (about[name] for name in ("judges", "seed", "held_out"))
        if not isinstance(judges, list) or not all(isinstance(name, str) for name in judges):
            raise ValueError(f"judges={judges!r} are no names")
        return Taught(tuple(judges), int(seed), float(held_out))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} does not say who taught the judge ({error}); write it anew") from None


def judge_name(user_llm: UserLlm) -> str:
    """The judge by its path and, where others taught it, by their names."""
    try:
        taught = read_taught(resolve(user_llm.path, "user_llm.path"))
    except ConfigError:  # results are read after the model has gone, too
        taught = None
    return user_llm.path if taught is None else f"{user_llm.path} (taught by {', '.join(taught.judges)})"


def sources(user_llm: UserLlm) -> dict[str, str]:
    """Whose clicks results count, and whose probabilities make their expected figures."""
    judge = judge_name(user_llm)
    return {"counted": judge, "expected": judge if user_llm.reading == "token" else CLICK_MODEL}


def caption(clicks: Mapping[str, str]) -> str:
    """`sources` in words, for a table."""
    if clicks["counted"] == clicks["expected"]:
        return f"clicks of {clicks['counted']}; expected: by its probabilities"
    return f"clicks of {clicks['counted']}; expected: by the {clicks['expected']}"
