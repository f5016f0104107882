"""Other mechanisms' rules of allocation and payment, pure. Imports no torch, ray or vllm."""

from raylla.mechanisms import mosaic, segment

__all__ = ["mosaic", "segment"]
