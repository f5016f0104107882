"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.lightness import Light
from tests.published import published_data

os.environ["OMP_NUM_THREADS"] = "1"
"""Of each process of a test run: where two share the cores, threads that wait for each other spin."""
SLOW = "slow"
LONGEST = (
    "test_machines",
    "test_evaluate",
    "test_joining",
    "test_jobs",
    "test_serving",
    "test_real",
    "test_nodes",
    "test_draining",
)
"""Files, the first to begin first. Those whose engines are in this process (`test_adapters`, `test_engine`,
`test_online`) begin before those that train in it: vLLM ends the process group that DeepSpeed has kept."""
BEYOND = ("no CUDA device", "no mount namespace")
"""How reasons begin that no tool mends: the machine's own."""
SKIPPED: dict[str, list[str]] = {}
"""Why tests were skipped, but for `BEYOND` -> which."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="unit tests that load neither a model library nor Ray"
    )
    parser.addoption(
        "--no-skips",
        action="store_true",
        help="a skipped test fails the run, unless this machine cannot run it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """With ``--fast`` nothing heavy is loaded, whoever asks for it."""
    if config.getoption("--fast"):
        sys.meta_path.insert(0, Light())


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What tests import stays: no garbage collection walks through it, while it is loaded or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: two workers that pack a file in two seconds pack other bytes,
    and pytest-xdist runs nothing where names differ."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process is left with one when the others are done.

    With ``--fast`` tests that say that they take seconds, or need a server, are left out.
    """
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if config.getoption("--fast"):
        left = [one for one in items if one.get_closest_marker(SLOW) or one.get_closest_marker("postgres")]
        config.hook.pytest_deselected(items=left)
        items[:] = [one for one in items if one not in left]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep why tests were skipped."""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not reason.startswith(BEYOND):
            SKIPPED.setdefault(reason, []).append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With ``--no-skips`` a run that left tests out has failed."""
    if session.config.getoption("--no-skips") and SKIPPED and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Which tests were skipped, by what they want."""
    if SKIPPED and config.getoption("--no-skips"):
        terminalreporter.write_line("failed, for --no-skips allows no test to be skipped:")
    for reason, names in SKIPPED.items():
        terminalreporter.write_line(
            f"skipped: {reason} ({len(names)}: {names[0]}{' ...' * (len(names) > 1)})"
        )


# No example is judged by the clock: these machines are busy.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def webis() -> Path:
    """The real Webis data."""
    return published_data("webis", "real data")


@pytest.fixture(scope="session")
def gem_bench() -> Path:
    """The products, queries and judged answers of GEM-Bench."""
    return published_data("gem-bench", "real data")


@pytest.fixture(scope="session")
def native_answers() -> Path:
    """The published answers with and without native ads."""
    return published_data("webis-native-ads/answers.jsonl.gz", "published native ads")


@pytest.fixture(scope="session")
def kuberay() -> Path:
    """The definitions of KubeRay's custom resources."""
    return published_data("kuberay", "definitions of KubeRay's resources")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialized two-layer Qwen3 model with a pocket tokenizer, as a directory."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from raylla.pocket import tokenizer
    from raylla.world.synthetic import grammar

    rng = random.Random(0)
    texts = []
    for _ in range(300):
        for draw in (grammar.answer_sample, grammar.judge_sample, grammar.ask_sample):
            sample = draw(rng)
            texts += [sample.messages[0]["content"], sample.completion]
    words = tokenizer.train_tokenizer(texts, 512)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            initializer_range=0.06,
            tie_word_embeddings=True,
            pad_token_id=words.pad_token_id,
            eos_token_id=words.eos_token_id,
            bos_token_id=None,
        )
    )
    path = tmp_path_factory.mktemp("tiny") / "model"
    model.save_pretrained(path)
    tokenizer.save_tokenizer(words, path)
    return path


@pytest.fixture
def accelerate_reset() -> Iterator[None]:
    """What Accelerate keeps of the first trainer of a process is forgotten after the test."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
