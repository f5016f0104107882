"""Libraries kept off the console: what they say of their own insides, which no user can act on."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_native() -> None:
    """Torch's and vLLM's native code; before torch is loaded, here or in a process started from here."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def quiet() -> None:
    """What models are loaded and trained with."""
    import transformers

    # DeepSpeed 0.19 and vLLM 0.32 name collectives as torch 2.13 is about not to, at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|vllm\.")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
