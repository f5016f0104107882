"""The way to this machine is through nobody's proxy."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from raylla.errors import ConfigError
from raylla.network import header_key, loopback, spare_proxy, web_address
from raylla.serving.deploy.cluster import Dashboard

PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
NO_PROXIES = ("NO_PROXY", "no_proxy")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8265",
        "http://127.3.2.1",
        "http://[::1]:8000/v1",
        "http://localhost:8000",
        "https://raylla.localhost./",
        "http://0.0.0.0:8000",
        "http://[::ffff:127.0.0.1]:1",
        "http://127.1:80",
        "http://0:80",
        "http://2130706433",
        "localhost:8265",
    ],
)
def test_addresses_of_this_machine(url: str) -> None:
    assert loopback(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1:8265",
        "http://localhost.example",
        "http://[2001:db8::1]:1",
        "nothing",
        "",
        "http://[::1",
    ],
)
def test_addresses_of_others(url: str) -> None:
    assert not loopback(url)


@pytest.fixture(params=["127.0.0.1", "::1"])
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A dashboard and endpoint on this address, while the environment names a proxy where nothing is."""
    host = str(request.param)

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            port = self.server.server_address[1]
            options = {"host": "::" if ":" in host else host, "port": port}
            found: dict[str, dict[str, Any]] = {
                "/healthz": {"status": "ok"},
                "/api/version": {"version": "4", "ray_version": "2", "ray_commit": ""},
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found.get(self.path, {"http_options": options})).encode())

        def log_message(self, *args: object) -> None:
            """Nothing on the console."""

    try:
        server = Server((host, 0), Handler)
    except OSError:
        pytest.skip(f"no {host} on this machine")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in NO_PROXIES:
        monkeypatch.setenv(name, "example.com")
    try:
        yield (
            f"http://[{host}]:{server.server_port}"
            if ":" in host
            else f"http://{host}:{server.server_port}"
        )
    finally:
        server.shutdown()
        server.server_close()


def test_a_dashboard_and_an_endpoint_here_are_reached(here: str) -> None:
    at = Dashboard(here)
    assert at.details()["http_options"]["port"] == int(here.rpartition(":")[2])
    assert at.endpoint() == here
    assert at.health() == {"status": "ok"}


def test_ray_s_own_client_which_reads_the_environment_is_told(
    here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.job_submission import JobSubmissionClient

    with pytest.raises(ConnectionError, match="Failed to connect"):
        JobSubmissionClient(here)
    spare_proxy(here)
    assert JobSubmissionClient(here).get_address() == here
    for name in NO_PROXIES:
        monkeypatch.setenv(name, "")
    spare_proxy("http://10.0.0.1:8265")
    with pytest.raises(ConnectionError, match="Failed to connect"):
        JobSubmissionClient(here)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://127.0.0.1:abc",
        "http://127.0.0.1:8000 ",
        "127.0.0.1:8000",
        "localhost:8000",
        "ftp://ads.example",
        "http://",
        "http://a..example",
        f"http://{'a' * 64}.example",
        "http://\udcff.example",
        "",
    ],
)
def test_addresses_that_nobody_can_ask(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^--url .*give an http or https URL"):
        web_address("--url", url)


@pytest.mark.parametrize(
    "url", ["http://[::1]:8000", "https://ads.example/v1/", "http://\u00e4ds.example", "http://h:65535"]
)
def test_addresses_that_can_be_asked(url: str) -> None:
    assert web_address("--url", url) == url


@pytest.mark.parametrize("key", ["schl\u00fcssel", "a\nb", "\udcff"])
def test_keys_that_no_header_holds(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^--key: ") as said:
        header_key("--key", key)
    assert key not in str(said.value)
    assert header_key("--key", "rk_1.aB-_") == "rk_1.aB-_"
