"""A cluster on this machine whose nodes Ray's own autoscaler adds and removes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.e2e.nodes import ENVIRONMENT, wait_for_head

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""The id by which Ray's provider of fake nodes knows the head."""

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


class Fleet:
    """A head without CPUs, and up to ``most`` nodes of one CPU each that come and go."""

    def __init__(self, most: int, idle_seconds: float) -> None:
        # Sockets have short names: not in pytest's deep directories.
        self._directory = tempfile.TemporaryDirectory(prefix="rf", dir="/tmp", ignore_cleanup_errors=True)
        here = Path(self._directory.name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        (here / "autoscaling.yaml").write_text(json.dumps(self._config(most, idle_seconds)))
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0", "--num-gpus=0"]
        command += [f"--autoscaling-config={here / 'autoscaling.yaml'}", "--include-dashboard=false"]
        command += ["--disable-usage-stats", "--object-store-memory=100000000", f"--temp-dir={here}/ray"]
        environment = {
            **ENVIRONMENT,
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        self._log = here / "head.log"
        with self._log.open("wb") as log:
            self._head = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True
            )
        wait_for_head(self._head, self.address, self._log)

    def _config(self, most: int, idle_seconds: float) -> dict[str, object]:
        return {
            "cluster_name": "fleet",
            "max_workers": most,
            "idle_timeout_minutes": idle_seconds / 60,
            "provider": {
                "type": "external",
                "module": PROVIDER,
                "head_node_id": HEAD,
                "gcs_address": self.address,
                "launch_multiple": True,
            },
            "available_node_types": {
                "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
                "cpu": {
                    "resources": {"CPU": 1, "object_store_memory": 100_000_000},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": most,
                },
            },
            "head_node_type": "ray.head.default",
            # What the defaults would hold, which the wheel leaves out for this provider.
            **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
            **{key: [] for key in ("initialization_commands", "head_start_ray_commands")},
            **{key: [] for key in ("worker_start_ray_commands", "cluster_synced_files")},
            **{key: {} for key in ("auth", "file_mounts")},
        }

    def close(self) -> None:
        """End the head and all nodes: they are its descendants."""
        if self._head.poll() is not None:
            raise AssertionError(self._log.read_text())
        tree = [*psutil.Process(self._head.pid).children(recursive=True), psutil.Process(self._head.pid)]
        for one in tree:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        self._head.wait(timeout=30)
        self._directory.cleanup()
