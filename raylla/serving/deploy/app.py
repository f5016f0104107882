"""The Serve application: which deployments there are, and what each is told.

    colocated (serving.colocate)   Ingress: HTTP, auctioneer, engine, pCTR model      Canary: engine
    apart                          Ingress: HTTP, auctioneer    Engine    Predictor   Canary: engine

Where versions are adapters that share an engine (serving.adapters) the canary is in it, and no deployment.

`manifest` writes the application as a Serve config, which `raylla serve` deploys and which is a
RayService's `serveConfigV2`; `build` is its import path. The driver imports neither torch nor vllm here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylla import models
from raylla.config import Config, Replicas, Serving, parse_config
from raylla.errors import ConfigError
from raylla.models import roles
from raylla.runs.state import Run
from raylla.serving.deploy.policies import check_shared
from raylla.serving.deploy.versions import Target, find
from raylla.serving.money.sheets import served_sheet
from raylla.serving.tracing import check_tracing

NAME = "raylla"
IMPORT_PATH = "raylla.serving.deploy.app:build"
HEALTH_PERIOD, HEALTH_TIMEOUT = 5, 30
"""Seconds between two questions for a replica's health, and for its answer."""
_SLACK = 2
"""Serve queues more than `serving.max_ongoing` allows, so that the endpoint itself refuses, and says when
to come back."""


def effective(config: Config, run: str | Path | None, version: str | None) -> tuple[Config, Target]:
    """The run's config with sections ``serving``, ``engine`` and ``ray`` of ``config``; what to serve.

    Raises:
        ConfigError: no run was named, its Ad-LLM cannot chat, there is no such price sheet, nothing that
            sends traces, or its versions are no adapters and should share an engine.
        RunError: there is no such run or version.
        WeightError: the version cannot share an engine.
    """
    run = run or config.serving.run
    if run is None:
        raise ConfigError(
            "serving.run: name a run directory (--run DIR), made by `raylla train`; its weights write the "
            "answers and its pCTR model predicts the clicks"
        )
    target = find(run, version or config.serving.version)
    tree = Run.open(run).config.model_dump(mode="json")
    tree |= config.model_dump(mode="json", include={"serving", "engine", "ray"})
    tree["serving"] |= {
        "run": target.run,
        "version": target.version,
        "database": _absolute(config.serving.database),
    }
    if config.serving.prices is not None:
        tree["serving"]["prices"] = str(config.serving.prices.resolve())
    served = parse_config(tree, "serving")
    sheet = served_sheet(served)
    if sheet is not None:  # replicas that start later charge by this very sheet
        tree["serving"]["prices_digest"] = sheet.digest
        served = parse_config(tree, "serving")
    check_tracing(served.serving.traces)
    if served.serving.adapters == "shared":
        check_shared(served, target)
    roles.check_chat(models.resolve(served.ad_llm.path, "ad_llm.path"), "ad_llm.path")
    return served, target


def manifest(config: Config, target: Target) -> dict[str, Any]:
    """The Serve config of an `effective` config, serving ``target`` without a canary."""
    serving = config.serving
    deployments = [
        {
            "name": "Ingress",
            "user_config": {"stable": target.plain(), "canary": None, "share": 0.0, "since": None},
        },
    ]
    if serving.adapters == "merged":
        deployments.append(
            {
                "name": "Canary",
                "user_config": {"version": None},
                "autoscaling_config": canary_scale(serving, 0),
            }
        )
    if not serving.colocate:
        deployments += [
            {"name": "Engine", "user_config": told_engine(serving, target, None)},
            {"name": "Predictor", "user_config": {"version": target.plain()}},
        ]
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": serving.host, "port": serving.port},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": config.model_dump(mode="json", exclude={"evaluation", "bench"}),
                "deployments": deployments,
            }
        ],
    }


def told_engine(serving: Serving, stable: Target, canary: Target | None) -> dict[str, Any]:
    """What the deployment Engine is told to answer by."""
    told: dict[str, Any] = {"version": stable.plain()}
    if serving.adapters == "shared":
        told["canary"] = canary.plain() if canary is not None else None
    return told


def canary_scale(serving: Serving, least: int) -> dict[str, Any]:
    """Autoscaling of the canary: no replica while there is none to try."""
    scale = autoscale(serving.engine)
    return scale | {"min_replicas": least, "initial_replicas": least, "downscale_delay_s": 5}


def autoscale(replicas: Replicas) -> dict[str, Any]:
    """Serve's autoscaling settings."""
    return {
        "min_replicas": replicas.min_replicas,
        "max_replicas": replicas.max_replicas,
        "target_ongoing_requests": replicas.target_ongoing,
    }


def build(args: dict[str, Any]) -> Any:
    """The Serve application of a config tree, as `manifest` hands it over."""
    from ray import serve

    from raylla.serving.deploy import replicas

    config = parse_config(args, "serve config")
    serving = config.serving
    tree = config.model_dump(mode="json")

    def deployed(kind: Any, name: str, group: Replicas, **options: Any) -> Any:
        width = config.engine.tensor_parallel
        return serve.deployment(
            kind,
            name=name,
            autoscaling_config=options.pop("scale", None) or autoscale(group),
            max_ongoing_requests=options.pop("ongoing", _SLACK * serving.max_ongoing),
            ray_actor_options={"num_cpus": group.cpus, "num_gpus": group.gpus * width},
            graceful_shutdown_timeout_s=serving.tmax + 5,
            health_check_period_s=HEALTH_PERIOD,
            health_check_timeout_s=HEALTH_TIMEOUT,
            **options,
        )

    canary = None
    if serving.adapters == "merged":
        canary = deployed(
            replicas.CanaryReplica, "Canary", serving.engine, scale=canary_scale(serving, 0)
        ).bind(tree)
    if serving.colocate:
        held = serving.ingress.model_copy(update={"gpus": serving.engine.gpus})
        return deployed(replicas.Ingress, "Ingress", held).bind(tree, canary)
    engine = deployed(replicas.EngineReplica, "Engine", serving.engine).bind(tree)
    predictor = deployed(replicas.PredictorReplica, "Predictor", serving.predictor).bind(tree)
    return deployed(replicas.Ingress, "Ingress", serving.ingress).bind(tree, canary, engine, predictor)


def _absolute(database: str) -> str:
    """A SQLite URL with the whole path: replicas work in directories of their own."""
    prefix = "sqlite:///"
    if not database.startswith(prefix) or database == prefix:
        return database
    return prefix + str(Path(database.removeprefix(prefix)).resolve())


__all__ = [
    "IMPORT_PATH",
    "NAME",
    "autoscale",
    "build",
    "canary_scale",
    "effective",
    "manifest",
    "told_engine",
]
