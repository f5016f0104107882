"""Layers point one way: no rooms import in a circle; the mechanism, the store and the driver load no
model library. Names tell things apart: few stand for one thing here and for another there."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 12
"""Modules that a folder holds at most, beside `__init__` and `__main__`: more are two rooms."""

DOUBLED = 15
"""Public names that more than one module defines, at most."""

ALIKE = {
    "router": "a module's routes, as FastAPI calls them",
    "log": "a module's logger, as structlog calls it",
    "app": "a module's commands, as typer calls them",
}
"""Names that a framework's custom asks of each module."""

LIGHT = (
    "raylla.records",
    "raylla.config",
    "raylla.auction",
    "raylla.mechanisms",
    "raylla.figures.intervals",
    "raylla.figures.offpolicy",
    "raylla.plan.console",
    "raylla.terms.fidelity",
    "raylla.terms.welfare",
    "raylla.world.fit",
    "raylla.world.retrieval",
    "raylla.serving.billing.audit",
    "raylla.serving.http.campaigns",
    "raylla.serving.http.clicks",
    "raylla.serving.auction.eligibility",
    "raylla.serving.store.importing",
    "raylla.serving.billing.notices",
    "raylla.world.build",
    "raylla.world.imports.importers",
    "raylla.world.meaning",
)
DRIVER = (
    "raylla.cli",
    "raylla.bench",
    "raylla.irpo.loop",
    "raylla.irpo.stages",
    "raylla.evaluation.conflict",
    "raylla.evaluation.evaluate",
    "raylla.evaluation.offpolicy.suite",
    "raylla.serving.deploy.app",
    "raylla.serving.deploy.cluster",
    "raylla.serving.deploy.deploy",
    "raylla.serving.deploy.estimate",
    "raylla.serving.deploy.rewriting",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (LIGHT, ("ray", "torch", "vllm", "transformers")),
        (DRIVER, ("torch", "vllm", "deepspeed", "trl")),
        (("raylla.serving.money.records",), ("ray", "torch", "vllm", "sqlalchemy", "fastapi")),
    ],
    ids=["mechanism", "driver", "records"],
)
def test_imports(modules: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {', '.join(modules)}; print([m for m in {forbidden!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def modules() -> dict[str, Path]:
    """Every module and package of raylla by its dotted name."""
    found = {}
    for path in (ROOT / "raylla").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Names of raylla that a file imports anywhere, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: import by the full name"
            assert not node.level, f"{path}:{node.lineno}: import by the full name"
            for one in node.names:
                whole = f"{node.module}.{one.name}"
                yield whole if whole in known else node.module


def rooms(package: str) -> dict[str, set[str]]:
    """What is directly in ``package`` -> what else in it that imports, its parts taken together."""
    known, depth = modules(), package.count(".") + 2
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        if name.startswith(f"{package}."):
            room = ".".join(name.split(".")[:depth])
            others = {".".join(one.split(".")[:depth]) for one in imported(path, known)}
            inside = {one for one in others if one.startswith(f"{package}.")}
            found.setdefault(room, set()).update(inside - {room})
    return found


@pytest.mark.parametrize("package", ["raylla", "raylla.serving"])
def test_rooms_do_not_import_in_circles(package: str) -> None:
    graph = rooms(package)
    assert len(graph) > 5
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle, each imported by the next: {' -> '.join(error.args[1])}")


def test_no_room_is_crowded() -> None:
    counts: dict[str, int] = {}
    for path in modules().values():
        if not path.stem.startswith("__"):
            folder = str(path.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: number for folder, number in counts.items() if number > MOST} == {}


def public(path: Path) -> set[str]:
    """Names that a module defines at its top level and does not hide."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [one for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
            found.update(one.id for one in names if isinstance(one.ctx, ast.Store))
    return {name for name in found if not name.startswith("_")}


def test_public_names_are_defined_once() -> None:
    homes: dict[str, list[str]] = {}
    for module, path in sorted(modules().items()):
        if module.startswith("raylla.serving.store.migrations.versions."):
            continue  # alembic wants `upgrade` and `revision` of each
        for name in public(path) - ALIKE.keys():
            if name != "rows" or not module.startswith("raylla.bench.parts."):  # how a part plugs in
                homes.setdefault(name, []).append(module)
    doubled = {name: where for name, where in sorted(homes.items()) if len(where) > 1}
    assert len(homes) > 1000
    assert len(doubled) <= DOUBLED, "\n".join(
        f"{name}: {', '.join(where)}" for name, where in doubled.items()
    )
