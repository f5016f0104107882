"""Teach a language model to run an ad auction inside its own answers: LLM-Auction on Ray."""

__version__ = "0.1.0"
