"""What a config costs on given hardware, from counts alone; pure arithmetic, imports no torch, ray or vllm.

`architecture` counts a model, `hardware` holds what devices can do, `budget` derives each phase's tokens,
FLOPs, bytes, memory and seconds, `show` prints them.
"""

from raylla.plan.budget import Budget, Lengths, budget

__all__ = ["Budget", "Lengths", "budget"]
