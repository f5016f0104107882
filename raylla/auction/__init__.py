"""The mechanism, pure: markup, reward, payment and properties. Imports no torch, ray or vllm."""

from raylla.auction import incentives, optimum, truthful
from raylla.auction.markup import Parsed, ReadAnswer, Violation, attempts, markup, parse
from raylla.auction.payment import estimate_itctr, expected_payment, payment_per_click
from raylla.auction.reward import penalty, reward

__all__ = [
    "Parsed",
    "ReadAnswer",
    "Violation",
    "attempts",
    "estimate_itctr",
    "expected_payment",
    "incentives",
    "markup",
    "optimum",
    "parse",
    "payment_per_click",
    "penalty",
    "reward",
    "truthful",
]
