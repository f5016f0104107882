"""Canary, promotion and rollback against a scripted Serve."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from raylla.cli import app as cli
from raylla.config import Config
from raylla.errors import DeadlineError, DeployError, RunError, WeightError
from raylla.runs.state import Run
from raylla.serving.deploy import app, deploy
from raylla.serving.deploy.cluster import Dashboard
from raylla.serving.deploy.versions import find
from raylla.serving.store import open_store

ADDRESS = "http://head:8265"


class Serve:
    """A dashboard and an endpoint: takes a config at once, but no version called ``broken``."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.status = "RUNNING"
        self.stable = ""
        self.canary: str | None = None

    def request(self, method: str, url: str, json: Any = None, **_: Any) -> httpx.Response:
        assert url == f"{ADDRESS}/api/serve/applications/"
        if method == "PUT":
            self.config = json
            return httpx.Response(200)
        (application,) = self.config["applications"]
        state = {
            "status": self.status,
            "message": "no CPUs left" if self.status != "RUNNING" else "",
            "deployed_app_config": application,
            "deployments": {
                one["name"]: {"status": "HEALTHY", "message": ""} for one in application["deployments"]
            },
        }
        http = {**self.config["http_options"], "root_path": ""}
        return httpx.Response(
            200,
            json={"applications": {"raylla": state}, "proxy_location": "EveryNode", "http_options": http},
        )

    def get(self, url: str, **_: Any) -> httpx.Response:
        assert url.endswith("/healthz")
        told = self.told("Ingress")
        problems = []
        for side in ("stable", "canary"):
            wanted = told[side]
            if wanted and wanted["version"] == "broken":
                problems.append(f"weight version broken of {wanted['run']}: the probe differs")
            elif side == "stable":
                self.stable = wanted["version"]
            else:
                self.canary = wanted["version"] if wanted else None
        versions = {"stable": self.stable, "canary": self.canary}
        return httpx.Response(200, json={"status": "ok", "versions": versions, "problems": problems})

    def told(self, name: str) -> Any:
        return self.deployment(name)["user_config"]

    def deployment(self, name: str) -> Any:
        return next(one for one in self.config["applications"][0]["deployments"] if one["name"] == name)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    made = Serve()
    monkeypatch.setattr(httpx, "request", made.request)
    monkeypatch.setattr(httpx, "get", made.get)
    monkeypatch.setattr("raylla.serving.deploy.cluster.POLL_SECONDS", 0.0)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the versions v0 to v2 and broken, as far as deployment reads it."""
    made = Run.create(tmp_path / "run", Config.model_validate({"irpo": {"epochs": 3}}))
    probe = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-0.5]}
    for epoch, name in enumerate(("v1", "v2", "broken"), start=1):
        made.fresh(Path(made.weights(name)))
        (Path(made.weights(name)) / "config.json").write_text("{}")
        made.commit(f"epoch-{epoch}/align", [], {"weight_version": name, "probe": probe})
    made.fresh(made.path / "reward" / "epoch-1")
    return made.path


@pytest.fixture
def at(serve: Serve, run: Path, tmp_path: Path) -> Dashboard:
    serving = {"database": f"sqlite:///{tmp_path}/raylla.db", "colocate": False}
    config, target = app.effective(Config.model_validate({"serving": serving}), run, "v1")
    open_store(config.serving.database).close()
    dashboard = Dashboard(ADDRESS)
    dashboard.apply(json.loads(json.dumps(app.manifest(config, target))), 1)
    return dashboard


def test_a_canary_is_promoted_everywhere_at_once(serve: Serve, at: Dashboard, run: Path) -> None:
    deploy.canary(at, run, "v2", 0.25)
    told = serve.told("Ingress")
    assert (told["stable"]["version"], told["canary"]["version"], told["share"]) == ("v1", "v2", 0.25)
    assert serve.deployment("Canary")["autoscaling_config"]["min_replicas"] == 1
    assert serve.told("Engine")["version"]["version"] == "v1"
    found = deploy.status(at)
    assert found.canary is not None
    assert found.auctions == {"stable": 0, "canary": 0}
    deploy.promote(at)
    assert {serve.told(name)["version"]["version"] for name in ("Engine", "Predictor")} == {"v2"}
    told = serve.told("Ingress")
    assert (told["stable"]["version"], told["canary"], told["share"]) == ("v2", None, 0.0)
    assert serve.deployment("Canary")["autoscaling_config"]["min_replicas"] == 0
    assert deploy.status(at).canary is None


def test_a_canary_is_rolled_back(serve: Serve, at: Dashboard, run: Path) -> None:
    deploy.canary(at, run, "v2", 0.25)
    deploy.roll_back(at)
    assert serve.told("Ingress")["canary"] is None
    assert serve.told("Ingress")["stable"]["version"] == "v1"
    assert serve.told("Canary")["version"]["version"] == "v2"  # of one that comes up late too
    assert serve.deployment("Canary")["autoscaling_config"]["min_replicas"] == 0


def test_a_refused_canary_goes_by_itself(serve: Serve, at: Dashboard, run: Path) -> None:
    with pytest.raises(WeightError, match="probe differs"):
        deploy.canary(at, run, "broken", 0.25)
    assert serve.told("Ingress")["canary"] is None


def test_a_refused_promotion_wishes_for_the_old_version_again(
    serve: Serve, at: Dashboard, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy.canary(at, run, "v2", 0.25)
    serve.told("Ingress")["canary"]["version"] = "broken"  # good as a canary, refused by a serving engine
    with pytest.raises(WeightError):
        deploy.promote(at)
    assert serve.told("Ingress")["stable"]["version"] == "v1"
    assert serve.told("Engine")["version"]["version"] == "v1"


@pytest.mark.parametrize("act", [deploy.promote, deploy.roll_back])
def test_without_a_canary_there_is_nothing_to_decide(
    at: Dashboard, act: Callable[[Dashboard], None]
) -> None:
    with pytest.raises(DeployError, match="no canary"):
        act(at)


def test_versions_are_looked_up_before_anything_is_deployed(serve: Serve, at: Dashboard, run: Path) -> None:
    before = json.dumps(serve.config)
    with pytest.raises(RunError, match="there are v0, v1, v2, broken"):
        deploy.canary(at, run, "v9", 0.25)
    assert find(run, None).version == "broken"
    assert json.dumps(serve.config) == before


def test_a_failed_deployment_says_why(serve: Serve, at: Dashboard, run: Path) -> None:
    serve.status = "DEPLOY_FAILED"
    with pytest.raises(DeployError, match="no CPUs left"):
        deploy.canary(at, run, "v2", 0.25)
    serve.status = "DEPLOYING"
    with pytest.raises(DeadlineError, match=r"after deadlines\.start=0 s"):
        at.apply(serve.config, 0)


def test_no_dashboard_is_named() -> None:
    with pytest.raises(DeployError, match="--address"):
        Dashboard("http://127.0.0.1:1").deployed()


def test_the_serve_config_can_be_written_instead_of_deployed(run: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("serving:\n  colocate: false\n  engine:\n    max_replicas: 4\n")
    out = tmp_path / "serve.yaml"
    arguments = ["serve", str(config), "--run", str(run), "--version", "v2", "--write", str(out)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    tree = yaml.safe_load(out.read_text())
    (application,) = tree["applications"]
    assert application["import_path"] == "raylla.serving.deploy.app:build"
    told = {one["name"]: one["user_config"] for one in application["deployments"]}
    assert told["Engine"]["version"] == {"run": str(run), "version": "v2"}
    assert Config.model_validate(application["args"]).serving.engine.max_replicas == 4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["deploy"], "give a run directory, or one of"),
        (["deploy", "--promote", "--rollback"], "give a run directory, or one of"),
        (["deploy", "--status", "--address", "http://127.0.0.1:1"], "--address"),
        (["deploy", "--status", "--address", "http://127.0.0.1:99999"], "a port of 1 to 65535"),
        (["serve", "absent.yaml"], "absent.yaml"),
    ],
)
def test_commands_say_what_is_missing(arguments: list[str], named: str) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert named in " ".join(done.output.split())
