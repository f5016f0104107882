"""Workers on Ray, or in this process; importing this imports neither vllm nor torch."""

from raylla.actors.judge import JudgeItem, Judgement, JudgeWorker, judge_item, parse_clicks
from raylla.actors.pool import DONE, Call, Pool, next_item, next_reference
from raylla.actors.rollout import RolloutWorker
from raylla.actors.weights import WeightStore, roll_out
from raylla.models import read_weights

__all__ = [
    "DONE",
    "Call",
    "JudgeItem",
    "JudgeWorker",
    "Judgement",
    "Pool",
    "RolloutWorker",
    "WeightStore",
    "judge_item",
    "next_item",
    "next_reference",
    "parse_clicks",
    "read_weights",
    "roll_out",
]
