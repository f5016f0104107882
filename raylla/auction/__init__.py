"""The mechanism, pure: markup, reward and payment. Imports no torch, ray or vllm."""

from raylla.auction.markup import Parsed, Violation, markup, parse
from raylla.auction.payment import expected, itctr, per_click
from raylla.auction.reward import penalty, reward

__all__ = ["Parsed", "Violation", "expected", "itctr", "markup", "parse", "penalty", "per_click", "reward"]
