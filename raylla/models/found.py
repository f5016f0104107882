"""The directory of a model or adapter on this machine, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raylla.errors import ConfigError
from raylla.models.places import resolve
from raylla.storage import here, remote


@contextmanager
def found(place: str | Path) -> Iterator[Path]:
    """The directory of the model or adapter at ``place``, as it is, for as long as it is read.

    Raises:
        ConfigError: there is no such model, or the hub does not give it.
        StorageError: a URL holds nothing, or does not answer.
    """
    if not remote(place) and Path(place).is_dir():
        yield Path(place)
        return
    where = resolve(str(place), "model")
    if remote(where) or Path(where).is_dir():
        with here(where) as directory:
            yield directory
        return
    yield _downloaded(where)


def _downloaded(name: str) -> Path:
    """Where Hugging Face keeps the model ``name`` on this machine, downloaded where it is not there yet."""
    import huggingface_hub  # takes a second, which most have no need of

    try:
        return Path(huggingface_hub.snapshot_download(name))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model={name!r}: no such directory, and the Hugging Face hub does not give it: {error}; give "
            "the name of a model that this machine can download, pocket:NAME, package:NAME or a directory"
        ) from error
