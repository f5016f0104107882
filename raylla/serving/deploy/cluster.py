"""The Ray cluster that serves: started here, or reached through its dashboard's Serve API.

`ray start --head` opens the dashboard on port 8265; KubeRay does so on the head service. Only whoever
may deploy should reach it (docs/security.md).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import ray
from ray import serve

from raylla.actors import login
from raylla.actors.placement import QUIETLY
from raylla.config import Config
from raylla.errors import DeadlineError, DeployError
from raylla.network import bracketed, loopback, occupied
from raylla.progress import Steps
from raylla.serving.deploy.app import NAME
from raylla.serving.security import keyring
from raylla.serving.store import open_store
from raylla.terminal import say

ENDPOINT = "start the endpoint and its engines"
"""The stage in which a deployment is waited for."""
POLL_SECONDS = 0.5
REQUEST_SECONDS = 30.0
PROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
"""Variables that name the ports at which HAProxy speaks of itself, and what they are without."""
_PATH = "/api/serve/applications/"
_DONE = {"RUNNING"}
_FAILED = {"DEPLOY_FAILED", "UNHEALTHY"}


def environment() -> dict[str, str]:
    """What Ray's processes on a serving node need: HAProxy in front of the replicas, one loop in each,
    one thread per process.

    The proxy then costs no Python process on the way, and a replica's HTTP server, auctioneer and
    engine hand requests over within one event loop.
    """
    return {
        login.MODE: "disabled",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "FORWARDED_ALLOW_IPS": "nobody",  # uvicorn would believe whom HAProxy passes on
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def start_ray() -> str:
    """Start Ray on this machine for serving, whatever else runs on it; the address of its dashboard."""
    for name, value in environment().items():
        os.environ.setdefault(name, value)
    context = ray.init("local", include_dashboard=True, object_store_memory=256 * 2**20, **QUIETLY)
    return f"http://{context.dashboard_url}"


def vacant(config: Config) -> None:
    """See that the ports of an endpoint on this machine can be listened at.

    Raises:
        DeployError: one is taken, or not of this machine; names it and its setting.
    """
    host, port = config.serving.host, config.serving.port
    if port and (why := occupied(host, port)) is not None:
        raise DeployError(
            f"serving.port={port}: nobody can listen at {bracketed(host)}:{port}: {why}; end what does, "
            "or serve elsewhere, with --set serving.port=PORT"
        )
    for name, usual in PROXY_PORTS.items():
        port = int(os.environ.get(name, usual))
        if (why := occupied("0.0.0.0", port, shared=True)) is not None:
            raise DeployError(
                f"port {port}, which HAProxy needs: {why}; end what listens there, or set {name} to "
                "another in the environment"
            )


def serve_here(config: Config, manifest: Mapping[str, Any], watch: Steps) -> None:
    """Serve on a Ray of our own until SIGINT or SIGTERM; says where.

    Raises:
        ConfigError: the secrets are missing.
        StoreError: the database cannot be used, or is in another currency.
        DeployError: a port is taken, or the application does not come up.
        DeadlineError: Ray's dashboard or the application took longer than ``deadlines.start``.
    """
    vacant(config)
    seconds = config.deadlines.start
    database = config.serving.database
    if (made := keyring.ensure(database)) is not None:
        say(f"made signing and admin keys for this machine: {made} (mode 0600)")
    store = open_store(database)
    try:
        store.denominate(config.serving.currency)
    finally:
        store.close()
    stopped = threading.Event()
    with watch.stage("start Ray here"):
        at = Dashboard(start_ray(), patience=seconds)
    for number in (signal.SIGINT, signal.SIGTERM):  # now, for Ray's start has set a handler of its own
        signal.signal(number, lambda *_: stopped.set())
    try:
        with watch.stage(f"wait for Ray's dashboard at {at.address}"):
            at.details()
        with watch.stage(ENDPOINT):
            at.apply(manifest, seconds)
        say(f"endpoint   {at.endpoint()}/v1  (playground at {at.endpoint()}/, OpenAPI at /docs)")
        say(f"dashboard  {at.address}  (for `raylla deploy --address`)")
        if (kept := keyring.file(database)) is not None:
            say(f"admin key  {keyring.ADMIN_KEY} of the environment, else of {kept}")
        stopped.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


class Dashboard:
    """The Serve API of a cluster."""

    def __init__(self, address: str, patience: float = 0.0) -> None:
        """``address`` is the dashboard's URL; the token that this process has is shown there.

        ``patience``: seconds that a dashboard is waited for which this process has started itself; 0: it is
        the user's own to name, and whatever does not answer there is none.
        """
        self.address = address.rstrip("/")
        self._patience = patience
        login.log_in()

    def details(self) -> dict[str, Any]:
        """Everything that Serve says about itself.

        Raises:
            DeployError: nothing answers there, or something else than a Ray dashboard.
            DeadlineError: a dashboard that was started here does not answer in time.
        """
        return self._details(self._patience)

    def apply(self, config: Mapping[str, Any], seconds: float) -> None:
        """Deploy a Serve config and wait until it runs.

        Raises:
            DeployError: Serve refuses it, or it fails.
            DeadlineError: it did not run within ``seconds`` (``deadlines.start``).
        """
        deadline = time.monotonic() + seconds
        self._ask("PUT", config, self._patience, seconds)  # answered once Serve's controller runs
        # Serve takes a moment to begin, and until then the old state is shown.
        time.sleep(POLL_SECONDS)
        while True:
            left = max(deadline - time.monotonic(), POLL_SECONDS)
            found = self._details(left).get("applications", {}).get(NAME, {})
            if found.get("status") in _DONE and _settled(found):
                return
            if found.get("status") in _FAILED:
                raise DeployError(f"Serve application {NAME}: {found['status']}: {_why(found)}")
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"Serve application {NAME} is {found.get('status', 'absent')} after "
                    f"deadlines.start={seconds:g} s ({_why(found)}); look at the replicas' "
                    f"logs on {self.address}"
                )
            time.sleep(POLL_SECONDS)

    def deployed(self) -> dict[str, Any]:
        """The Serve config that is deployed, in the form that `apply` takes.

        Raises:
            DeployError: raylla is not deployed there.
        """
        found = self.details()
        application = found.get("applications", {}).get(NAME)
        if not application or not application.get("deployed_app_config"):
            raise DeployError(f"no application {NAME} at {self.address}; start one with `raylla serve`")
        return {
            "proxy_location": found["proxy_location"],
            "http_options": {name: found["http_options"][name] for name in ("host", "port")},
            "applications": [application["deployed_app_config"]],
        }

    def endpoint(self) -> str:
        """Where the cluster's auctions are held, as seen from here."""
        options = self.details()["http_options"]
        host = options["host"]
        if host in ("0.0.0.0", "::", ""):
            host = urlsplit(self.address).hostname
        return f"http://{bracketed(host)}:{options['port']}"

    def health(self) -> dict[str, Any]:
        """The endpoint's own word on its health.

        Raises:
            DeployError: it does not answer.
        """
        url = f"{self.endpoint()}/healthz"
        try:
            return dict(httpx.get(url, timeout=REQUEST_SECONDS, trust_env=not loopback(url)).json())
        except (httpx.HTTPError, ValueError) as error:
            raise DeployError(f"{url} does not answer: {error}") from None

    def _details(self, patience: float) -> dict[str, Any]:
        return dict(self._ask("GET", None, patience).json())

    def _ask(
        self,
        method: str,
        body: Mapping[str, Any] | None,
        patience: float,
        read: float = REQUEST_SECONDS,
    ) -> httpx.Response:
        """An answer, which may take ``read`` seconds; asked for again for ``patience`` seconds."""
        began = time.monotonic()
        while True:
            try:
                return self._once(method, body, max(read, REQUEST_SECONDS))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                waited = time.monotonic() - began
                if patience and waited > patience:
                    raise DeadlineError(
                        f"{self._name()} did not answer for {waited:.0f} s ({error}); on a machine that is "
                        "this busy, give it longer with --set deadlines.start=SECONDS"
                    ) from None
                if not patience:
                    raise DeployError(
                        f"--address {self.address}: {error}; give the URL of the cluster's dashboard, "
                        "such as http://127.0.0.1:8265"
                    ) from None
            time.sleep(POLL_SECONDS)

    def _once(self, method: str, body: Mapping[str, Any] | None, read: float) -> httpx.Response:
        answer = httpx.request(
            method,
            self.address + _PATH,
            json=body,
            headers=login.headers(),
            timeout=httpx.Timeout(REQUEST_SECONDS, read=read),
            trust_env=not loopback(self.address),
        )
        if answer.status_code in (401, 403):
            raise DeployError(f"{self._name()}: {answer.text[:200]}; {login.missing()}")
        if method == "GET" and answer.status_code >= 500:  # what it asks in turn has not come up
            raise httpx.HTTPError(f"status {answer.status_code}: {answer.text[:200]}")
        if answer.status_code != 200:
            raise DeployError(f"{self.address}: Serve refuses the config: {answer.text[:2000]}")
        return answer

    def _name(self) -> str:
        if self._patience:
            return f"Ray's dashboard at {self.address}, which was started here,"
        return f"--address {self.address}"


def _settled(application: Mapping[str, Any]) -> bool:
    return all(about["status"] == "HEALTHY" for about in application.get("deployments", {}).values())


def _why(application: Mapping[str, Any]) -> str:
    messages = [application.get("message", "")]
    messages += [
        f"{name}: {about['message']}" for name, about in application.get("deployments", {}).items()
    ]
    return "; ".join(message for message in messages if message.strip(": ")) or "no message"
