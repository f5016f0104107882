"""Profiles, ads and queries: how they are built, stored, imported and bid for.

Submodules are imported by name (`from raylla.world import build`); `build` draws on the pocket
grammar, which itself reads this package, so it cannot be loaded from here.
"""

from raylla.world.world import World

__all__ = ["World"]
