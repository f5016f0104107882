"""What a config names and packages bring by entry points: classes that are made without arguments."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from raylla.errors import ConfigError


def known_plugins(group: str) -> list[str]:
    """Names of all that are installed in a group of entry points."""
    return sorted({point.name for point in entry_points(group=group)})


def named_plugins(group: str, names: Sequence[str], kind: type[Any], what: str, needs: str) -> list[Any]:
    """The plugins of these names, in this order, each made anew.

    ``kind`` is the protocol that they are to have (its members are ``needs``), ``what`` one of them.

    Raises:
        ConfigError: there is none of that name, or what is installed under it cannot be made, is none, or
            calls itself otherwise.
    """
    known = {point.name: point for point in entry_points(group=group)}
    plugins = []
    for name in names:
        if name not in known:
            raise ConfigError(
                f"no {what} named {name!r}; there are {', '.join(sorted(known))}; a new one is among them "
                "when its package has been installed again"
            )
        point = known[name]
        try:
            made = point.load()()
        except Exception as error:
            raise ConfigError(f"the {what} {name!r}: {point.value} cannot be made: {error}") from error
        if not isinstance(made, kind):
            raise ConfigError(f"the {what} {name!r}: {point.value} is no {what}: it lacks {needs}")
        if made.name != name:
            raise ConfigError(
                f"the {what} {name!r}: {point.value} calls itself {made.name!r}; give it one name"
            )
        plugins.append(made)
    return plugins
