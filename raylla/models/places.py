"""Where a model is: `pocket:`, `package:` and `adapter:` names, directories, URLs, Hugging Face names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raylla.config import Config
from raylla.errors import ConfigError, WeightError
from raylla.models import packages
from raylla.models.vision import check_vision
from raylla.storage import exists, read_text, remote, within

POCKET = Path(__file__).parents[1] / "pocket" / "weights"
ADAPTERS = Path(__file__).parent / "adapters"
CONFIG = "config.json"
ADAPTER = "adapter_config.json"
"""File by which a directory is an adapter in peft's format, and no whole model."""
CONFIGS = (CONFIG, ADAPTER)
"""One of them is in every model's directory."""


def resolve(path: str, field: str) -> str:
    """The place of a model or adapter, or its Hugging Face name where that is what ``path`` is.

    Raises:
        ConfigError: a name, directory or URL that does not exist, or an adapter whose base does not;
            names ``field``, and the command that fetches what is missing.
    """
    return _resolve(path, field, ())


def is_adapter(place: str | Path) -> bool:
    """Whether a directory or URL holds an adapter in peft's format instead of a whole model.

    Raises:
        StorageError: the bucket does not answer, or refuses.
    """
    return exists(within(place, ADAPTER))


def adapter_settings(directory: str | Path) -> dict[str, Any]:
    """What the adapter in a directory or at a URL says of itself (peft's LoraConfig).

    Raises:
        WeightError: it cannot be read, or names no base model.
    """
    place = within(directory, ADAPTER)
    try:
        about = json.loads(read_text(place))
        if not isinstance(about.get("base_model_name_or_path"), str):
            raise ValueError("base_model_name_or_path is missing")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightError(f"{place} cannot be read as an adapter's configuration: {error}") from None
    return dict(about)


def base(path: str, field: str) -> str:
    """The place of the whole model below all adapters of ``path``: what no training for ads has changed.

    Raises:
        ConfigError: it does not exist; names ``field``.
    """
    place = resolve(path, field)
    while is_adapter(place):
        place = resolve(
            adapter_settings(place)["base_model_name_or_path"], f"base_model_name_or_path of {place}"
        )
    return place


def check_places(config: Config) -> dict[str, str]:
    """Where every model of ``config`` is, by the field that names it.

    Raises:
        ConfigError: some of them do not exist, named each with the command that fetches it, or no model
            can be loaded in this environment.
    """
    check_vision()
    named = {
        "ad_llm.path": config.ad_llm.path,
        "user_llm.path": config.user_llm.path,
        "pctr.encoder": config.pctr.encoder,
    }
    if config.evaluation.user_llm is not None:
        named["evaluation.user_llm"] = config.evaluation.user_llm
    if config.judging is not None:
        named |= {"judging.base": config.judging.base, "judging.encoder": config.judging.encoder}
    start = config.pctr.start
    if start is not None and not exists(start):
        raise ConfigError(f"pctr.start={start!r}: no such directory; give RUN/reward/epoch-N of a run")
    faults: dict[str, str] = {}
    missing: list[str] = []
    for field, path in named.items():
        try:
            faults[field] = resolve(path, field)
        except ConfigError as error:
            missing.append(str(error))
    if missing:
        raise ConfigError("; ".join(missing))
    return faults


def _resolve(path: str, field: str, above: tuple[str, ...]) -> str:
    kind, _, name = path.partition(":")
    if kind == "pocket":
        return _pocket(path, name, field)
    if kind == "package":
        return _package(path, name, field)
    if kind == "adapter":
        place = str(ADAPTERS / name)
        if not name or not is_adapter(place):
            names = sorted(file.parent.name for file in ADAPTERS.glob(f"*/{ADAPTER}"))
            raise ConfigError(
                f"{field}={path!r}: raylla ships no such adapter; there are {', '.join(names) or 'none'}"
            )
    elif remote(path):
        place = path
        if not exists(within(path, CONFIG)) and not is_adapter(path):
            raise ConfigError(f"{field}={path!r}: there is no {CONFIG} at the URL, and no {ADAPTER}")
    elif Path(path).is_dir():
        place = str(Path(path).resolve())
        if not exists(within(path, CONFIG)) and not is_adapter(path):
            raise ConfigError(f"{field}={path!r}: the directory holds no {CONFIG}, and no {ADAPTER}")
    elif path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ConfigError(
            f"{field}={path!r}: no such directory; give pocket:NAME, package:NAME, adapter:NAME, a "
            "directory, a URL or a hub name"
        )
    else:
        return path
    if is_adapter(place):
        _base(place, field, above)
    return place


def _base(place: str, field: str, above: tuple[str, ...]) -> None:
    """Look for the model that the adapter at ``place`` changes, which may have a base of its own."""
    if place in above:
        raise ConfigError(f"{field}: the adapter at {place} is its own base; name a model as its base")
    try:
        base = adapter_settings(place)["base_model_name_or_path"]
    except WeightError as error:
        raise ConfigError(f"{field}: {error}") from None
    _resolve(base, f"{field}: base_model_name_or_path of the adapter at {place}", (*above, place))


def _pocket(path: str, name: str, field: str) -> str:
    directory = POCKET / name
    if not (directory / "model.safetensors").exists():
        names = sorted(file.parent.name for file in POCKET.glob("*/model.safetensors"))
        raise ConfigError(f"{field}={path!r}: no such pocket model; there are {', '.join(names) or 'none'}")
    return str(directory)


def _package(path: str, name: str, field: str) -> str:
    try:
        packages.known(name)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from None
    if not packages.fetched(name):
        raise ConfigError(
            f"{field}={path!r}: it is not in {packages.directory(name).parent} yet; run "
            f"`raylla models fetch {name}`"
        )
    return str(packages.directory(name))
