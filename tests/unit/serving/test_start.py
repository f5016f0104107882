"""What `raylla serve` looks at before Ray starts, and how it waits for the dashboard of its own Ray."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from rich.console import Console

from raylla.config import Config
from raylla.errors import DeadlineError, DeployError
from raylla.network import occupied
from raylla.progress import Steps
from raylla.serving.deploy import cluster

HERE = "http://127.0.0.1:8265"
RUNNING = {
    "applications": {"raylla": {"status": "RUNNING", "deployments": {}}},
    "http_options": {"host": "127.0.0.1", "port": 8000},
}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Ray nor anything before it may be touched."""

    def touched(*_: Any) -> Any:
        raise AssertionError("something was started")

    monkeypatch.setattr(cluster, "start_ray", touched)
    monkeypatch.setattr(cluster.keyring, "ensure", touched)
    monkeypatch.setattr(cluster, "open_store", touched)


def config_at(port: int, **serving: Any) -> Config:
    return Config.model_validate({"serving": {"port": port, **serving}, "deadlines": {"start": 7}})


def steps(path: Path) -> Steps:
    return Steps(Console(file=path.open("w"), width=200))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", ""])
def test_a_port_is_occupied_while_somebody_listens(taken: int, host: str) -> None:
    assert occupied(host, taken) == "Address already in use"


def test_a_port_is_free_once_nobody_listens_or_all_share_it(taken: int) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as server:
        port = server.getsockname()[1]
        assert occupied("127.0.0.1", port, shared=True) is None
        assert occupied("127.0.0.1", port) is not None
    assert occupied("127.0.0.1", port) is None
    assert occupied("127.0.0.1", taken, shared=True) is not None
    assert occupied("192.0.2.1", port) == "Cannot assign requested address"
    assert occupied("no-such-host.invalid", port)


@pytest.mark.usefixtures("never")
def test_a_port_that_is_taken_is_named_before_anything_starts(taken: int, tmp_path: Path) -> None:
    named = rf"serving\.port={taken}: nobody can listen at 127\.0\.0\.1:{taken}: Address already in use"
    with pytest.raises(DeployError, match=named):
        cluster.serve_here(config_at(taken), {}, steps(tmp_path / "said"))
    assert (tmp_path / "said").read_text() == ""


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("name", list(cluster.PROXY_PORTS))
def test_a_port_that_haproxy_needs_is_named(
    taken: int, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as server:
        for each in cluster.PROXY_PORTS:
            monkeypatch.setenv(each, str(server.getsockname()[1]))
        cluster.vacant(config_at(0))
        monkeypatch.setenv(name, str(taken))
        with pytest.raises(DeployError, match=f"port {taken}, which HAProxy needs: .* set {name} to"):
            cluster.serve_here(config_at(0), {}, steps(tmp_path / "said"))


class Slow:
    """A dashboard of which the first answers fail, each in its own way, and the time that they take."""

    def __init__(self, *failures: Exception | int) -> None:
        self.failures = list(failures)
        self.asked: list[tuple[str, float]] = []
        self.now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def request(self, method: str, url: str, timeout: httpx.Timeout, **_: Any) -> httpx.Response:
        self.asked.append((method, timeout.read or 0.0))
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, int):
                return httpx.Response(failure, text="no Serve yet")
            self.now += 30.0 if isinstance(failure, httpx.TimeoutException) else 0.0
            raise failure
        return httpx.Response(200, json=RUNNING)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    made = Slow()
    monkeypatch.setattr(httpx, "request", made.request)
    clock = SimpleNamespace(monotonic=lambda: made.now, sleep=made.wait)
    monkeypatch.setattr(cluster, "time", clock)
    return made


def test_a_dashboard_of_ones_own_is_waited_for(slow: Slow) -> None:
    slow.failures = [httpx.ConnectError("refused"), httpx.ReadTimeout("timed out"), 500]
    at = cluster.Dashboard(HERE, patience=300)
    assert at.endpoint() == "http://127.0.0.1:8000"
    assert [method for method, _ in slow.asked] == ["GET"] * 4


def test_serve_has_the_whole_deadline_to_take_a_config(slow: Slow) -> None:
    """It answers once its controller runs, which on a busy machine takes longer than any other request."""
    cluster.Dashboard(HERE, patience=300).apply({}, 300)
    assert slow.asked == [("PUT", 300), ("GET", cluster.REQUEST_SECONDS)]
    slow.failures, slow.asked = [], []
    at = cluster.Dashboard("http://head:8265")
    at.apply({}, 5)
    assert slow.asked == [("PUT", cluster.REQUEST_SECONDS), ("GET", cluster.REQUEST_SECONDS)]


def test_a_dashboard_that_stays_silent_is_named_with_the_deadline(slow: Slow) -> None:
    slow.failures = [httpx.ReadTimeout("timed out")] * 20
    with pytest.raises(DeadlineError) as raised:
        cluster.Dashboard(HERE, patience=100).details()
    said = str(raised.value)
    assert said.startswith(f"Ray's dashboard at {HERE}, which was started here, did not answer for 12")
    assert "(timed out)" in said
    assert "--set deadlines.start=SECONDS" in said
    assert "--address" not in said
    assert len(slow.asked) == 4


def test_an_address_that_was_given_is_named_at_once(slow: Slow) -> None:
    slow.failures = [httpx.ConnectError("refused")]
    with pytest.raises(DeployError, match=r"--address http://head:8265: refused; give the URL"):
        cluster.Dashboard("http://head:8265").apply({}, 300)
    assert len(slow.asked) == 1


def test_a_deployment_goes_on_where_an_answer_of_many_fails(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, httpx.ReadTimeout("timed out"), 503])

    def request(method: str, url: str, **how: Any) -> httpx.Response:
        failure = next(answers, None)
        slow.failures = [] if failure is None else [failure]
        return slow.request(method, url, **how)

    monkeypatch.setattr(httpx, "request", request)
    cluster.Dashboard("http://head:8265").apply({}, 300)
    assert [method for method, _ in slow.asked] == ["PUT", "GET", "GET", "GET"]


def test_what_is_waited_for_is_said(slow: Slow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in cluster.PROXY_PORTS:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(cluster, "start_ray", lambda: HERE)
    monkeypatch.setattr(cluster.keyring, "ensure", lambda _: None)
    monkeypatch.setattr(cluster.signal, "signal", lambda *_: None)
    for module in (cluster.serve, cluster.ray):
        monkeypatch.setattr(module, "shutdown", lambda: None)
    slow.failures = [httpx.ReadTimeout("timed out")]  # longer than `deadlines.start`
    chosen = config_at(port, database=f"sqlite:///{tmp_path}/raylla.db")
    with pytest.raises(DeadlineError, match=r"Ray's dashboard at .* did not answer for 30 s"):
        cluster.serve_here(chosen, {}, steps(tmp_path / "said"))
    assert f"wait for Ray's dashboard at {HERE}: begun" in (tmp_path / "said").read_text()
