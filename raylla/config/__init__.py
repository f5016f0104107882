"""One strict tree of settings: the only home of defaults. Imports no torch, ray or vllm.

A config file is a thin YAML overlay over these defaults; `--set a.b=c` overrides one value.
Unknown keys are errors that name the nearest valid key.
"""

from raylla.config.judging import Judging
from raylla.config.measuring import Bench, Evaluation
from raylla.config.reading import changed, keys, load_config, located, parse_config, read_config
from raylla.config.sections import (
    Actors,
    Deadlines,
    Dpo,
    Engine,
    Engines,
    Grpo,
    Irpo,
    Lora,
    Model,
    Online,
    Pctr,
    Penalty,
    Ray,
    Rollout,
    Sampling,
    Section,
    Tuning,
    UserLlm,
    Wandb,
    Warmstart,
    World,
)
from raylla.config.serving import Links, Replicas, Serving
from raylla.config.sharding import Shards
from raylla.config.tree import Config

__all__ = [
    "Actors",
    "Bench",
    "Config",
    "Deadlines",
    "Dpo",
    "Engine",
    "Engines",
    "Evaluation",
    "Grpo",
    "Irpo",
    "Judging",
    "Links",
    "Lora",
    "Model",
    "Online",
    "Pctr",
    "Penalty",
    "Ray",
    "Replicas",
    "Rollout",
    "Sampling",
    "Section",
    "Serving",
    "Shards",
    "Tuning",
    "UserLlm",
    "Wandb",
    "Warmstart",
    "World",
    "changed",
    "keys",
    "load_config",
    "located",
    "parse_config",
    "read_config",
]
