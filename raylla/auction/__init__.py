"""The mechanism, pure: markup, reward, payment and properties. Imports no torch, ray or vllm."""

from raylla.auction import incentives, optimum, truthful
from raylla.auction.markup import Parsed, Violation, attempts, markup, parse
from raylla.auction.payment import expected, itctr, per_click
from raylla.auction.reward import penalty, reward

__all__ = [
    "Parsed",
    "Violation",
    "attempts",
    "expected",
    "incentives",
    "itctr",
    "markup",
    "optimum",
    "parse",
    "penalty",
    "per_click",
    "reward",
    "truthful",
]
