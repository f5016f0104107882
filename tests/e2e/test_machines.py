"""A run in a bucket, over three machines that see no disk of each other's; one dies within an epoch.

It goes on from a machine that has nothing of it, and makes what a run on one machine makes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.buckets import BUCKET, Bucket
from tests.e2e.machines import BRIDGE, ROOT, Machine, Network, lacking
from tests.e2e.nodes import ENVIRONMENT, Nodes

pytestmark = pytest.mark.e2e

WAIT = 400
"""Seconds that a command may take."""
RUN = f"s3://{BUCKET}/run"
TINY = {
    "world.profiles": 8,
    "world.queries_per_profile": 5,
    "world.test_share": 0.375,
    "irpo.epochs": 1,
    "irpo.queries": 8,
    "irpo.reward_answers": 3,
    "irpo.preference_answers": 4,
    "irpo.delta": 1,
    "irpo.max_drop_share": 0.2,
    "dpo.batch_groups": 4,
    "dpo.micro_groups": 2,
    "rollout.workers": 1,
    "evaluation.answers": 2,
    "wandb.mode": "disabled",
}
SPREAD = {
    "rollout.workers": 2,
    "rollout.cpus": 0,
    "rollout.gpus": 1,
    "dpo.cpus": 0.6,
    "judge.cpus": 0,
    "judge.labels": "{raylla/node: head}",
    "reward_trainer.cpus": 0,
    "reward_trainer.labels": "{raylla/node: head}",
    "ray.autoscaling": "true",
}
"""One engine and one rank of the trainer fit on each machine but the head, which has the judge."""


def training(run: str, settings: Mapping[str, Any]) -> list[str]:
    """Arguments that train a run of the pocket config with these settings."""
    sets = (part for name, value in settings.items() for part in ("--set", f"{name}={value}"))
    return ["train", str(ROOT / "configs" / "pocket.yaml"), "--run", run, *sets]


def ledger(files: Iterable[Path]) -> list[str]:
    """The samples that a run has taken, stage by stage."""
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [f"{line['stage']} {line['sample_id']}" for line in lines if "sample_id" in line]


def table(run: Path) -> Any:
    """A run's results, epoch by epoch."""
    return json.loads((run / "results.json").read_text())["epochs"]


@dataclass
class Machines:
    """A cluster of machines, and a bucket that all of them reach."""

    nodes: Nodes
    bucket: Bucket
    environment: dict[str, str]
    logs: Path

    def begin(self, machine: str, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A command of raylla on one of them, once its node is up."""
        self.nodes.wait(machine)
        command = self.nodes.inside(machine)([sys.executable, "-m", "raylla", *arguments])
        with (self.logs / log).open("ab") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=file, env=self.environment, start_new_session=True
            )

    def said(self, log: str) -> str:
        """What has been said into a log."""
        return (self.logs / log).read_text()

    def until(self, process: subprocess.Popen[bytes], log: str, text: str) -> None:
        """Until a command says ``text``."""
        end = time.monotonic() + WAIT
        while text not in self.said(log):
            assert process.poll() is None, self.said(log)[-4000:]
            assert time.monotonic() < end, self.said(log)[-4000:]
            time.sleep(0.05)

    def finish(self, process: subprocess.Popen[bytes], log: str) -> None:
        """Until a command has ended well."""
        assert process.wait(timeout=WAIT) == 0, self.said(log)[-4000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one machine, which nothing happens to."""
    if (why := lacking()) is not None:
        pytest.skip(why)
    run = tmp_path_factory.mktemp("whole") / "run"
    plain = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = plain | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "raylla", *training(str(run), TINY)]
    with (run.parent / "log").open("wb") as log:
        subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=ROOT, check=True, timeout=WAIT)
    return run


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """A head and two machines with room for work."""
    with ExitStack() as held:
        network = Network()
        held.callback(network.close)
        bucket = Bucket(tmp_path / "bucket.log", BRIDGE, 9000, network.beside([]))
        held.callback(bucket.close)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        ours = {"GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT)}
        ours |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        known = plain | ENVIRONMENT | ours | bucket.environment
        nodes = Nodes(known, network)
        held.callback(nodes.close)
        for name in ("a", "b"):
            nodes.add(name)
        yield Machines(nodes, bucket, known | {"RAY_ADDRESS": nodes.address}, tmp_path)


def test_machines_see_a_bucket_and_no_disk_of_each_other_s(tmp_path: Path) -> None:
    if (why := lacking()) is not None:
        pytest.skip(why)
    with ExitStack() as held:
        network = Network()
        held.callback(network.close)
        bucket = Bucket(tmp_path / "bucket.log", BRIDGE, 9000, network.beside([]))
        held.callback(bucket.close)
        a, b = network.add("a"), network.add("b")

        def done(machine: Machine, script: str) -> str:
            command = machine.inside(["sh", "-c", script])
            found = subprocess.run(
                command, env=os.environ | bucket.environment, capture_output=True, text=True
            )
            return found.stdout.strip() or f"status {found.returncode}"

        places = ["/tmp", "/dev/shm", os.environ["HOME"]]
        for place in places:
            assert done(a, f"echo a > {place}/mark && cat {place}/mark") == "a"
            assert done(b, f"cat {place}/mark") == "status 1"
            assert not Path(place, "mark").exists()
        assert done(a, f"touch {ROOT}/mark") == "status 1"
        put = "import fsspec; fsspec.filesystem('s3').pipe('runs/run/mark', b'of a')"
        get = "import fsspec; print(fsspec.filesystem('s3').cat('runs/run/mark').decode())"
        assert done(a, f'{sys.executable} -c "{put}"') == "status 0"
        assert done(b, f'{sys.executable} -c "{get}"') == "of a"
        assert (bucket.copy("run", tmp_path / "copy") / "mark").read_text() == "of a"
        network.cut("a")
        assert done(a, f'timeout 3 {sys.executable} -c "{get}"') != "of a"


def test_one_of_three_machines_dies_and_another_goes_on(
    whole: Path, machines: Machines, tmp_path: Path
) -> None:
    nodes = machines.nodes
    train = machines.begin("a", "train.log", *training(RUN, TINY | SPREAD))
    machines.until(train, "train.log", "epoch 1: learn: begun")
    nodes.kill("a")
    assert train.wait(timeout=30) != 0
    nodes.add("c")
    machines.finish(machines.begin("c", "train.log", "resume", RUN), "train.log")

    made = machines.bucket.copy("run", tmp_path / "copy")
    assert ledger(sorted((made / "ledger").iterdir())) == ledger([whole / "ledger.jsonl"])
    assert table(made) == table(whole)
    for stage in ("epoch-1/sample", "epoch-1/test", "epoch-2/test"):
        for kind in ("auctions", "answers", "clicks"):
            name = f"records/{stage}/{kind}.parquet"
            assert pq.read_table(made / name).equals(pq.read_table(whole / name)), name
