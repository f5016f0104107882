"""How the house stands: `python -m tests.house` prints the figures that `tests/unit/test_layers.py` holds.

They are read from the syntax of what lies under `raylla`; nothing is imported.  Frozen migrations of the
store are left out.  `python -m tests.house TREE` counts another checkout.
"""

from __future__ import annotations

import ast
import gc
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(sys.argv[1]) if __name__ == "__main__" and sys.argv[1:] else Path(__file__).parents[1]
"""The checkout that is counted."""

CUSTOM = {
    "router": "a module's routes, as FastAPI calls them",
    "log": "a module's logger, as structlog calls it",
    "app": "a module's commands, as typer calls them",
}
"""Names that a framework's custom asks of each module."""

PACKAGES = ("raylla", "raylla.serving")
"""Packages whose rooms may not import in a circle."""

VAGUE = ("one", "found")
"""Names that say nothing of the thing; the fewer are bound, the better."""

FRAMEWORKS = {"reconfigure", "check_health"}
"""Public methods that a framework calls by their names: Ray Serve."""


def modules() -> dict[str, Path]:
    """Every module and package of raylla by its dotted name, but for migrations."""
    paths: dict[str, Path] = {}
    for path in sorted((ROOT / "raylla").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-3:-1] != ("migrations", "versions"):
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


@cache
def parsed(path: Path) -> ast.Module:
    collecting = gc.isenabled()
    gc.disable()  # Python 3.11 fails where a finalizer that a collection runs in a parse parses, too
    try:
        return ast.parse(path.read_text())
    finally:
        if collecting:
            gc.enable()


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Names of raylla that a file imports anywhere, in functions and for types too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: import by the full name"
            assert not node.level, f"{path}:{node.lineno}: import by the full name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def rooms(package: str) -> dict[str, set[str]]:
    """What is directly in ``package`` -> what else in it that imports, its parts taken together."""
    known, depth = modules(), package.count(".") + 2
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        if name.startswith(f"{package}."):
            room = ".".join(name.split(".")[:depth])
            others = {".".join(other.split(".")[:depth]) for other in imported(path, known)}
            inside = {other for other in others if other.startswith(f"{package}.")}
            graph.setdefault(room, set()).update(inside - {room})
    return graph


def circles(graph: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Pairs of rooms of which each imports the other, by itself or by way of others."""
    reached = {room: _reached(graph, room) for room in graph}
    return [(a, b) for a in graph for b in graph if a < b and b in reached[a] and a in reached[b]]


def crowds() -> Counter[str]:
    """Folder -> how many modules it holds, beside `__init__` and `__main__`."""
    paths = (path for path in modules().values() if not path.stem.startswith("__"))
    return Counter(str(path.parent.relative_to(ROOT)) for path in paths)


def public(path: Path) -> set[str]:
    """Names that a module defines at its top level and does not hide."""
    names: set[str] = set()
    for node in parsed(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts = [part for target in targets for part in ast.walk(target)]
            names |= {part.id for part in parts if isinstance(part, ast.Name) and _stored(part)}
    return {name for name in names if not name.startswith("_")}


def homes() -> dict[str, list[str]]:
    """Public name -> the modules that define it, without those that custom asks for."""
    where: dict[str, list[str]] = {}
    for module, path in modules().items():
        for name in public(path) - CUSTOM.keys():
            if name != "rows" or not module.startswith("raylla.bench.parts."):  # how a part plugs in
                where.setdefault(name, []).append(module)
    return where


def doubled() -> dict[str, list[str]]:
    """Public names that more than one module defines."""
    return {name: where for name, where in sorted(homes().items()) if len(where) > 1}


def lengths() -> dict[str, int]:
    """File -> its lines."""
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules().values()}


def functions() -> dict[str, int]:
    """Function -> its lines, decorators and docstring among them."""
    return {
        f"{module}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module, path in modules().items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def bound() -> Counter[str]:
    """Name -> how often code binds it, as a variable or a parameter."""
    names: Counter[str] = Counter()
    for path in modules().values():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Name) and _stored(node):
                names[node.id] += 1
            elif isinstance(node, ast.arg):
                names[node.arg] += 1
    return names


def unused() -> list[str]:
    """Public functions and methods that nothing in raylla, its jobs or its entry points names.

    A method counts where its class has no base of others, whose code may call it; a decorated function
    does not, for the decorator may.
    """
    named = set(re.findall(r"\w+", (ROOT / "pyproject.toml").read_text())) | FRAMEWORKS
    for path in (*modules().values(), *(ROOT / "jobs").glob("*.py")):
        named |= set(_named(parsed(path)))
    ours = {name for name, where in homes().items() if where}
    idle = []
    for module, path in modules().items():
        for node in parsed(path).body:
            parts: list[ast.stmt] = [node]
            if isinstance(node, ast.ClassDef) and all(_base(base) in ours for base in node.bases):
                parts = node.body
            for part in parts:
                if not isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) or part.decorator_list:
                    continue
                if not part.name.startswith("_") and part.name not in named:
                    idle.append(f"{module}: {part.name}")
    return idle


def figures() -> list[tuple[str, str]]:
    """What is counted, and how much of it there is."""
    folder, crowd = crowds().most_common(1)[0]
    sizes, longest = lengths(), max(functions().items(), key=lambda row: row[1])
    largest = max(sizes.items(), key=lambda row: row[1])
    names, joined = bound(), sum(len(circles(rooms(package))) for package in PACKAGES)
    return [
        ("lines of raylla", f"{sum(sizes.values())} in {len(sizes)} files"),
        (
            "pairs of packages in a circle of imports",
            str(joined),
        ),
        ("modules in the largest flat room", f"{crowd} ({folder})"),
        ("public names defined in more than one module", str(len(doubled()))),
        ("median file, lines", f"{statistics.median(sizes.values()):g}"),
        ("longest file, lines", f"{largest[1]} ({largest[0]})"),
        ("longest function, lines", f"{longest[1]} ({longest[0]})"),
        ("public functions that nothing but tests calls", str(len(unused()))),
        *((f"times that a name `{name}` is bound", str(names[name])) for name in VAGUE),
    ]


def _reached(graph: Mapping[str, Iterable[str]], room: str) -> set[str]:
    seen: set[str] = set()
    ahead = list(graph[room])
    while ahead:
        if (name := ahead.pop()) not in seen:
            seen.add(name)
            ahead += graph.get(name, ())
    return seen


def _stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def _base(node: ast.expr) -> str:
    """The last word of a base class, `Protocol` of `Protocol[Key]`."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _named(tree: ast.Module) -> Iterator[str]:
    """Names that code reads, by themselves, of something, or in a short text (`broadcast("load")`)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not _stored(node):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
            yield from re.findall(r"\w+", node.value)


if __name__ == "__main__":
    for what, figure in figures():
        sys.stdout.write(f"{what:48} {figure}\n")
