"""Text generation behind one protocol; importing this imports neither vllm nor torch."""

from raylla.config import Engine as Settings
from raylla.engines.protocol import (
    AdapterRoom,
    Aggregate,
    Aggregated,
    Completion,
    Engine,
    Generated,
    Given,
    Probe,
    Request,
    Scored,
    Weights,
)

__all__ = [
    "AdapterRoom",
    "Aggregate",
    "Aggregated",
    "Completion",
    "Engine",
    "Generated",
    "Given",
    "Probe",
    "Request",
    "Scored",
    "Weights",
    "open_engine",
]


def open_engine(model_path: str, settings: Settings, seed: int, room: AdapterRoom | None = None) -> Engine:
    """A vLLM engine in this process, ready to answer (seconds on CPU, minutes for large models); with
    ``room``, its weight versions are adapters over one base."""
    from raylla.engines.vllm import VllmEngine

    return VllmEngine(model_path, settings, seed, room)
