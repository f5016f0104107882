"""`raylla bench`: what raylla does, measured side by side with what one would otherwise run.

A part is a function of a module of its own, named in `PARTS`, that takes a `Bench` and returns rows:

    def rows(bench: Bench) -> list[Row]:
        return [compare("packed ÷ pairs", Side("packed", fast), Side("pairs", slow), bench.repeats,
                        "groups/s")]

Each part runs in a process of its own, started with one thread per process, so that it may hold vLLM,
DeepSpeed or a Ray cluster and shares neither memory nor threads with the part before.  It imports what
it needs inside its functions or at the top of its module; this package imports no torch, ray or vllm.

`compare` runs both sides once unmeasured, then ``repeats`` times in alternating order, and takes the
ratio within each repeat, so that a machine that slows down slows both.  A row that is no A/B (an
exponent, a share) is made as ``Row(name, Spread(values), unit)``, a value per repeat.  There is no pass
and no fail: `docs/performance.md` says what each figure should be and what binds it.
"""

from raylla.bench.measure import Measured, Row, Side, Spread, compare, interleave, ratio
from raylla.bench.run import PARTS, Bench, merge, run_parts

__all__ = [
    "PARTS",
    "Bench",
    "Measured",
    "Row",
    "Side",
    "Spread",
    "compare",
    "interleave",
    "merge",
    "ratio",
    "run_parts",
]
