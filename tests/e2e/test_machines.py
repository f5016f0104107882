"""A run in a bucket, over three machines that see no disk of each other's; one dies within an epoch.

It makes what a run on one machine makes, and is evaluated and served by machines that have nothing of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raylla.serving.deploy.cluster import environment
from raylla.serving.security import keyring
from raylla.serving.security.tokens import TokenKeys
from tests.buckets import BUCKET, Bucket
from tests.e2e.commands import ROOT, TINY, ids, results, sets
from tests.e2e.machines import BRIDGE, Machine, Network, lacking
from tests.e2e.nodes import ENVIRONMENT, Nodes
from tests.e2e.nursery import FORKED
from tests.recorded import table

pytestmark = pytest.mark.e2e

WAIT = 400
"""Seconds that a command may take."""
RUN = f"s3://{BUCKET}/run"
ADMIN = "admin_key_of_the_test"
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
MEASURED = {
    "evaluation.mechanisms": "[pretrained,llm-auction]",
    "evaluation.bids": "[0,50,100]",
    "evaluation.sweep_answers": 1,
    "evaluation.sweep_versions": "ends",
    "evaluation.curve_answers": 4,
    "evaluation.curve_queries": 1,
    "evaluation.incentive_queries": 1,
    "evaluation.incentive_answers": 2,
    "evaluation.equilibrium_queries": 0,
    "evaluation.validation_queries": 1,
}
ASK = """
import httpx, sys
body = {"messages": [{"role": "user", "content": "which tea is good?"}]}
headers = {"Authorization": f"Bearer {sys.argv[2]}"}
answer = httpx.post(f"{sys.argv[1]}/v1/chat/completions", json=body, headers=headers, timeout=60)
print(answer.text if answer.status_code == 200 else f"{answer.status_code}: {answer.text}")
"""


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


@pytest.fixture
def network() -> Iterator[Network]:
    """What machines are joined by."""
    if (why := lacking()) is not None:
        pytest.skip(why)
    with closing(Network()) as found:
        yield found


@pytest.fixture
def bucket(network: Network, tmp_path: Path) -> Iterator[Bucket]:
    """A bucket that all machines of the network reach."""
    with closing(Bucket(tmp_path / "bucket.log", BRIDGE, 9000, network.beside([]))) as found:
        yield found


@pytest.fixture
def machines(network: Network, bucket: Bucket, tmp_path: Path) -> Iterator[Machines]:
    """A head and two machines with room for work."""
    secrets = {keyring.TOKEN_KEYS: TokenKeys.make(), keyring.ADMIN_KEY: ADMIN}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ours = {"GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": f"{FORKED}:{ROOT}", "PYTHONUNBUFFERED": "1"}
    known = plain | environment() | ENVIRONMENT | ours | secrets | bucket.environment
    with closing(Nodes(known, network, dashboard=True)) as nodes:
        for name in ("a", "b"):
            nodes.add(name)
        yield Machines(nodes, bucket, known | {"RAY_ADDRESS": nodes.address}, tmp_path)


def test_machines_see_a_bucket_and_no_disk_of_each_other_s(
    network: Network, bucket: Bucket, tmp_path: Path
) -> None:
    a, b = network.add("a"), network.add("b")

    def done(machine: Machine, script: str) -> str:
        command = machine.inside(["sh", "-c", script])
        found = subprocess.run(command, env=os.environ | bucket.environment, capture_output=True, text=True)
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


@pytest.mark.timeout(900)
def test_one_of_three_machines_dies_and_another_goes_on(
    machines: Machines, whole: Path, tmp_path: Path
) -> None:
    nodes = machines.nodes
    config = str(ROOT / "configs" / "pocket.yaml")
    train = machines.begin("a", "train.log", "train", config, "--run", RUN, *sets(TINY | SPREAD))
    machines.until(train, "train.log", "epoch 1: learn: begun")
    nodes.kill("a")
    assert train.wait(timeout=30) != 0
    nodes.add("c")
    machines.finish(machines.begin("c", "train.log", "resume", RUN), "train.log")

    made = machines.bucket.copy("run", tmp_path / "copy")
    assert ids(made) == ids(whole)
    assert results(made)["epochs"] == results(whole)["epochs"]
    for stage in ("epoch-1/sample", "epoch-1/test", "epoch-2/test"):
        for name in ("auctions", "answers", "clicks"):
            assert table(made, stage, name).equals(table(whole, stage, name)), f"{stage} {name}"
    evaluate = machines.begin("b", "evaluate.log", "evaluate", RUN, *sets(MEASURED))
    where = {"serving.host": "0.0.0.0", "serving.database": "sqlite:////tmp/endpoint.db"}
    serve = ["serve", config, "--run", RUN, "--address", nodes.dashboard, *sets(where)]
    machines.finish(machines.begin("c", "serve.log", *serve), "serve.log")
    answer = ask(machines)
    machines.finish(evaluate, "evaluate.log")
    assert answer["raylla"]["weight_version"] == "v1"
    assert answer["choices"][0]["message"]["content"]
    measured = machines.bucket.copy("run", tmp_path / "measured")
    row = json.loads((measured / "evaluation.json").read_text())["epochs"][-1]
    assert row["revenue"] == results(whole)["epochs"][-1]["revenue"]


def ask(machines: Machines) -> Any:
    """What the endpoint answers on a machine where Serve listens, which is one that has a replica."""
    said = []
    for name in ("b", "c"):
        command = machines.nodes.inside(name)([sys.executable, "-c", ASK, "http://127.0.0.1:8000", ADMIN])
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if found.stdout.startswith("{"):
            return json.loads(found.stdout)
        said.append(f"{name}: {found.stdout}{found.stderr}")
    raise AssertionError("\n".join([*said, machines.said("serve.log")[-2000:]]))
