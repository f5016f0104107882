"""The playground: one page on which a person asks, moves bids, clicks and sees what it costs."""

from raylla.serving.http.playground.routes import router

__all__ = ["router"]
