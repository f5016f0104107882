"""The environment and the seeds that vllm gets."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from raylla import config
from raylla.engines.vllm import engine_arguments


def test_addresses_of_services_are_no_ports_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes names them so for services called vllm and vllm-dp-master."""
    for name in ("VLLM_PORT", "VLLM_DP_MASTER_PORT"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:80")
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "")
    monkeypatch.setenv("VLLM_P2P_SIDE_CHANNEL_PORT", "5601")
    monkeypatch.setenv("OTHER_PORT", "tcp://10.0.0.1:80")
    engine_arguments("model", config.Engine(), 0)
    import vllm.envs

    assert vllm.envs.VLLM_PORT is None
    assert not {"VLLM_PORT", "VLLM_DP_MASTER_PORT", "VLLM_NIXL_SIDE_CHANNEL_PORT"} & os.environ.keys()
    assert os.environ["VLLM_P2P_SIDE_CHANNEL_PORT"] == "5601"
    assert os.environ["OTHER_PORT"] == "tcp://10.0.0.1:80"


def test_the_largest_seed_is_one_for_every_library() -> None:
    largest = config.changed(config.Config(), None, [f"seed={2**32 - 1}"]).seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(largest)
    state, numbers = random.getstate(), np.random.get_state()
    try:
        random.seed(largest)
        np.random.seed(largest)
        with pytest.raises(ValueError, match="Seed must be between"):
            np.random.seed(largest + 1)
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
    assert engine_arguments("model", config.Engine(), largest)["seed"] == largest
