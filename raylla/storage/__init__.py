"""Storage: the directories of a run on a path or in a bucket, one face for both."""

from raylla.storage.home import Home, home
from raylla.storage.places import (
    above,
    absolute,
    durable,
    exists,
    here,
    making,
    read_text,
    remote,
    within,
    write_whole,
    writing,
)

__all__ = [
    "Home",
    "above",
    "absolute",
    "durable",
    "exists",
    "here",
    "home",
    "making",
    "read_text",
    "remote",
    "within",
    "write_whole",
    "writing",
]
