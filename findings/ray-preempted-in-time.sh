#!/usr/bin/env bash
# Ray 2.60.0: the actor's error after a node was drained for preemption, by how the node ended.
#
# Expected: where a node was drained with the reason PREEMPTION (`ray drain-node`, what an autoscaler calls at
# a spot machine's notice) and its actor dies with it, the ActorDiedError says `preempted`: whoever counts
# failures leaves such a death out.
#
# What happens: that holds only where the node is found dead after its deadline. A node that stops in order
# within the time that it was given, as machines do that heed the notice, signs off by itself; then the error
# says that it was not preempted, though Ray has noted it: the actor's row in Ray's own table says that it
# was, both times. Ray Train, which reads the error, counts such a death against its `max_failures`.
#
# Output seen:
#     ray 2.60.0
#     killed after its deadline: error.preempted True, noted True
#     stopped within its time:   error.preempted False, noted True
set -euo pipefail
folder=$(mktemp -d)
trap '"$folder/venv/bin/python" "$folder/end.py" 2>/dev/null || true; rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile ray==2.60.0 psutil==7.2.2
cat > "$folder/end.py" <<PYTHON
import psutil
for process in psutil.process_iter(["cmdline"]):
    if any("$folder" in part for part in process.info["cmdline"] or ()) and process.pid != psutil.Process().pid:
        process.kill()
PYTHON
cd "$folder"
export RAY_health_check_period_ms=500 RAY_health_check_failure_threshold=4 RAY_health_check_timeout_ms=2000
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled RAY_ADDRESS=
"$folder/venv/bin/python" - 2>errors <<'PYTHON' || { tail -n 20 errors; exit 1; }
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import psutil
import ray

said, sys.stdout = sys.stdout, sys.stderr  # Ray prints the log of a node that is gone
RAY = os.path.join(os.path.dirname(sys.executable), "ray")
place = tempfile.mkdtemp(prefix="fr", dir=os.getcwd())
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"


def start(*options):
    command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@ray.remote(num_cpus=1)
class Sleeper:
    def node(self):
        return ray.get_runtime_context().get_node_id()

    def sleep(self):
        time.sleep(600)


def noted(actor):
    """What Ray's own table of actors says."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData

    told = state._connect_and_get_accessor().get_actor_info(actor._actor_id)
    return ActorTableData.FromString(told).preempted


def ended(seconds, number):
    """The error of an actor whose node was drained with so many seconds left, and ended by a signal."""
    node = start(f"--address={address}", "--num-cpus=1")
    actor = Sleeper.remote()
    name = ray.get(actor.node.remote(), timeout=120)
    call = actor.sleep.remote()
    drain = [RAY, "drain-node", f"--address={address}", f"--node-id={name}", "--reason-message=notice"]
    drain += ["--reason=DRAIN_NODE_REASON_PREEMPTION", f"--deadline-remaining-seconds={seconds}"]
    subprocess.run(drain, check=True, stdout=subprocess.DEVNULL)
    time.sleep(seconds + 1 if number == signal.SIGKILL else 0)
    (raylet,) = [one for one in psutil.Process(node.pid).children(True) if one.name() == "raylet"]
    raylet.send_signal(number)
    try:
        ray.get(call, timeout=120)
    except ray.exceptions.ActorDiedError as error:
        found = error.preempted
    finally:
        node.kill()
    end = time.monotonic() + 60
    while any(one["NodeID"] == name and one["Alive"] for one in ray.nodes()) and time.monotonic() < end:
        time.sleep(0.2)
    return found, noted(actor)


head = start("--head", f"--port={address.split(':')[1]}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={place}")
end = time.monotonic() + 120
while True:
    try:
        ray.init(address, log_to_driver=False)
        break
    except ConnectionError:
        assert time.monotonic() < end, "no head"
        time.sleep(1)
try:
    print("ray", ray.__version__, file=said)
    late, early = ended(2, signal.SIGKILL), ended(600, signal.SIGTERM)
    print(f"killed after its deadline: error.preempted {late[0]}, noted {late[1]}", file=said)
    print(f"stopped within its time:   error.preempted {early[0]}, noted {early[1]}", file=said)
finally:
    ray.shutdown()
    head.terminate()
assert late == (True, True) and early == (False, True), "changed"
PYTHON
