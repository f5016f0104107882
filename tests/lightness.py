"""Which test files load a model library or Ray: read from the imports, ours followed, nothing executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "vllm",
    "transformers",
    "deepspeed",
    "trl",
    "ray",
    "playwright",
    "schemathesis",
    "atheris",
}


def heavy(path: Path) -> bool:
    """Whether importing a file loads one of `HEAVY`; imports inside functions are not made by it."""
    return _loads(path, set())


def _loads(path: Path, seen: set[Path]) -> bool:
    if path in seen:
        return False
    seen.add(path)
    for name in _named(path):
        if name.partition(".")[0] in HEAVY or any(_loads(file, seen) for file in _files(name)):
            return True
    return False


@cache
def _named(path: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_imports(ast.parse(path.read_text()))))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Try | ast.With) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test)
        ):
            yield from _imports(node)


def _files(name: str) -> Iterator[Path]:
    """The files of ours that importing a module runs: its own and its packages'."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = ROOT.joinpath(*parts[:length])
        yield from (one for one in (module / "__init__.py", module.with_suffix(".py")) if one.is_file())
