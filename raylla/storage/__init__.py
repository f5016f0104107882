"""Storage: the directories of a run on a path or in a bucket, one face for both."""

from raylla.storage.home import Home, home
from raylla.storage.places import absolute, exists, here, making, remote, within, writing

__all__ = ["Home", "absolute", "exists", "here", "home", "making", "remote", "within", "writing"]
