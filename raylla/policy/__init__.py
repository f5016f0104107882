"""The alignment step: DPO or GRPO over packed preference groups, under DeepSpeed ZeRO.

Re-exports what a driver needs and no torch; training lives in ``worker`` and below.
"""

from raylla.policy.jobs import AlignJob, AlignResult

__all__ = ["AlignJob", "AlignResult"]
