"""Profiles, ads and queries: how they are built, stored, imported and bid for.

Submodules are imported by name (`from raylla.world import build`).
"""

from raylla.world.world import World

__all__ = ["World"]
