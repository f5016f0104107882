"""What a config costs on given hardware, from counts alone; pure arithmetic, imports no torch, ray or vllm.

`architecture` counts a model, `hardware` holds what devices can do, `work` counts an epoch's texts,
`budget` derives each phase's tokens, FLOPs and seconds, `memory` each group's bytes, `console` prints them;
`against` holds them to what a run had.
"""

from raylla.plan.budget import Budget, budget
from raylla.plan.work import AT_MOST, Counts, Lengths, Yields

__all__ = ["AT_MOST", "Budget", "Counts", "Lengths", "Yields", "budget"]
