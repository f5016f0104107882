"""What libraries say of themselves does not reach the console; what they say of a user's data does."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

from transformers.utils import logging as transformers_logging

from raylla.models.quiet import quiet

SOON = "`torch.distributed.reduce_op` is deprecated"


def test_successors_of_what_libraries_call_are_no_news_to_users() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet()
        for module in ("vllm.triton_utils.dispatcher", "torch.distributed.nn", "elsewhere"):
            warnings.warn_explicit(SOON, FutureWarning, "file.py", 1, module=module)
        warnings.warn_explicit("a loss is NaN", UserWarning, "file.py", 1, module="vllm.worker")
    assert [(str(one.message), one.category) for one in heard] == [
        (SOON, FutureWarning),
        ("a loss is NaN", UserWarning),
    ]


def test_no_bar_is_drawn_for_a_model_that_is_loaded() -> None:
    quiet()
    assert not transformers_logging.is_progress_bar_enabled()
    assert not logging.getLogger("accelerate.accelerator").isEnabledFor(logging.WARNING)


def test_the_command_line_quietens_what_it_starts() -> None:
    code = "import os, sys, raylla.cli; print(os.environ['TORCH_CPP_LOG_LEVEL'], 'torch' in sys.modules)"
    kept = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    for wanted, given in (("ERROR False", {}), ("INFO False", {"TORCH_CPP_LOG_LEVEL": "INFO"})):
        command = [sys.executable, "-c", code]
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=kept | given)
        assert found.stdout.strip() == wanted
