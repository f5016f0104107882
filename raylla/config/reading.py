"""From files and overrides to a tree, with messages that name the field and the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raylla.config.sections import Section
from raylla.config.tree import Config
from raylla.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"
"""YAML's tag of a key ``<<``, which may be there several times."""
PACKAGE = Path(__file__).parents[1]
SHIPPED = next(
    (folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()), PACKAGE
)
"""The configs that come with raylla: in an installed package, else in the repository."""


def located(path: Path) -> Path:
    """``path``, or where nothing is a shipped config by its name: ``pocket``, ``configs/pocket.yaml``."""
    shipped = SHIPPED / f"{path.name.removesuffix('.yaml')}.yaml"
    named = path.parent == Path() or (path.parent == Path("configs") and path.suffix == ".yaml")
    return shipped if named and not path.exists() and shipped.is_file() else path


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML overlay, or a shipped one by its name, and apply ``a.b=c`` overrides.

    Raises:
        ConfigError: unreadable file, unknown key or unusable value; names the field.
    """
    try:
        text = located(path).read_bytes()
    except OSError as error:
        names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
        raise ConfigError(
            f"config {path}: {error.strerror or error}; give the path of a YAML file, or a config that "
            f"comes with raylla: {names}"
        ) from None
    return read_config(text, str(path), overrides)


def read_config(text: str | bytes, source: str, overrides: Sequence[str] = ()) -> Config:
    """The config that a YAML text with overrides is; ``source`` is named in errors.

    Raises:
        ConfigError: no YAML, unknown key or unusable value; names the field.
    """
    tree = _yaml(text, f"config {source}") or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config {source} holds a {type(tree).__name__}, not a mapping of settings")
    for override in overrides:
        _set(tree, override)
    return parse_config(tree, source)


def changed(config: Config, section: str | None, overrides: Sequence[str], source: str = "--set") -> Config:
    """``config`` with overrides of one section, or of any; ``source`` is named in errors.

    Raises:
        ConfigError: an override of another section, an unknown key or an unusable value.
    """
    tree = config.model_dump(mode="json")
    for override in overrides:
        if section is not None and not override.startswith(f"{section}."):
            raise ConfigError(f"--set {override!r}: only settings of {section} can be changed here")
        _set(tree, override)
    return parse_config(tree, source)


def parse_config(tree: dict[str, Any], source: str) -> Config:
    """A validated Config from nested mappings."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, fault) for fault in error.errors())) from None


def _set(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: write it as section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.get(section)
        if not isinstance(inner, dict | None):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
        tree[section] = tree = dict(inner or {})  # its own: an alias of YAML is the same mapping elsewhere
    tree[last] = _yaml(value, f"--set {override!r}: the value")


def _yaml(text: str | bytes, what: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _once(node, what)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{what} is not YAML: {error}") from None


def _once(root: yaml.Node, what: str) -> None:
    """Refuse a mapping, at any depth, that has a key twice: YAML's readers take the last and say nothing.

    Raises:
        ConfigError: names the key and both lines.
    """
    seen: set[int] = set()
    left: list[tuple[yaml.Node, str]] = [(root, "")]
    while left:
        node, path = left.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # an alias is the same node again
        if not isinstance(node, yaml.MappingNode):
            left += [(child, path) for child in node.value]
            continue
        lines: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = f"{path}{key.value}"
            plain = isinstance(key, yaml.ScalarNode) and key.tag != MERGE
            if plain and (first := lines.setdefault(key.value, key)) is not key:
                raise ConfigError(
                    f"{what}: {name} is set in line {_line(first)} and again in line {_line(key)}; "
                    "keep one of them"
                )
            left.append((value, f"{name}."))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _explain(source: str, error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"]) or "(whole config)"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location, list(keys()), n=1, cutoff=0.0)
        return f"{source}: unknown key {location}; the nearest valid key is {near[0]}"
    shown = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return f"{source}: {location}: {error['msg']}{shown}"


def keys(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings, sections included."""
    names: list[str] = []
    for name, info in section.model_fields.items():
        names.append(prefix + name)
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            names += keys(kind, f"{prefix}{name}.")
    return names
