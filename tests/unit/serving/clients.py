"""The clients that people use against a real endpoint over HTTP, by the very snippets of docs/clients.md.

    python -m tests.unit.serving.clients

prints the table of that page. The clients are in an environment of their own, which `bash dev.sh clients`
makes, and `bash dev.sh test`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from raylla.auction import markup
from raylla.config import Sampling
from raylla.serving.engine.wire import Piece
from raylla.serving.http import web
from raylla.serving.money.records import Served
from raylla.serving.store import open_store
from raylla.serving.tracing import NO_TRACE, Carrier
from tests.unit.serving.market import ADMIN_KEY, Market
from tests.unit.serving.scripted import Endpoint, Script, endpoint

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "clients.md"
ENVIRONMENT = Path(os.environ.get("CLIENTS_DIR", ROOT / ".venv-clients"))
SECONDS = 300.0
"""Longest time of one client's process, on a busy machine; it is a few seconds, most of them imports."""
ASKED, FURTHER = "which mug keeps tea warm?", "and a cheaper one?"
TITLE = "Lumo Floral Cup"
PLAIN = f"Try {TITLE} (Sponsored) for tea."
JSON = '{"name": "Lumo", "price": 12}'
CLIENTS = {
    "openai, chat completions": "openai",
    "openai, responses": "openai",
    "langchain-openai": "langchain-openai",
    "litellm": "litellm",
    "pydantic-ai": "pydantic-ai-slim",
    "openai-agents": "openai-agents",
    "instructor": "instructor",
}
"""Heading on the page -> the distribution that its version is of."""
CASES = ("ask", "stream", "conversation", "refused")
"""What each snippet does, under a comment of that name."""
COLUMNS = ("invoke", "stream", "conversation", "refused parameter", "ad clickable")
_URL = re.compile(r"http://127\.0\.0\.1:\d+/v1/clicks/[A-Za-z0-9._-]+")
_LINK = re.compile(r"\[([^]]*)\]\((http://127\.0\.0\.1:\d+/v1/clicks/[^)]*)\)")


class Guide(Script):
    """Says the same of every question, and an object where JSON is asked for."""

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier = NO_TRACE
    ) -> AsyncGenerator[Piece, None]:
        """One answer."""
        text = self.text
        if getattr(sampling, "json_schema", None):
            self.text = JSON
        try:
            async for piece in super().generate(prompt, sampling, stream):
                yield piece
        finally:
            self.text = text


@dataclass
class Outcome:
    """What came of one client: the version, and of each column how it was done, or what went wrong."""

    version: str
    done: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    more: dict[str, str] = field(default_factory=dict)
    """What the snippet's cases beside `CASES` printed."""

    def row(self, name: str) -> str:
        """The client's line of the table."""
        cells = [self.done.get(column, "no") for column in COLUMNS]
        return f"| {name} | {self.version} | {' | '.join(cells)} |"


def missing() -> str | None:
    """Why the clients cannot be run here, and how to get them."""
    if (ENVIRONMENT / ".installed").exists():  # what dev.sh leaves when it is done
        return None
    return "no environment with the clients; `bash dev.sh clients` makes it from requirements/clients.txt"


def snippet(name: str) -> dict[str, str]:
    """The code of one heading of the page: its beginning and its cases, each under its comment."""
    _, _, rest = PAGE.read_text().partition(f"\n## {name}\n")
    lines = re.split(r"\n## ", rest)[0].splitlines()
    code = [line[4:] for line in lines if line.startswith("    ") or not line.strip()]
    found: dict[str, list[str]] = {"setup": []}
    for line in code:
        if (case := re.fullmatch(r"# ([a-z ]+)", line)) is not None:
            found[case[1]] = []
        found[list(found)[-1]].append(line)
    return {case: "\n".join(lines) for case, lines in found.items()}


@contextmanager
def serving() -> Iterator[tuple[Endpoint, str]]:
    """An endpoint with one ad, and the URL that it is served at."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="raylla-test-") as at:
        store = open_store(f"sqlite:///{at}/store.db")
        market = Market(store, web.now())
        cup = market.listing(market.seat(), title=TITLE)
        one = endpoint(store, writer=Guide(f"Try {markup(cup.ad)} for tea."), tmax=300)
        server = uvicorn.Server(uvicorn.Config(one.app, log_level="warning", timeout_graceful_shutdown=5))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
            thread.start()
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield one, f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
            thread.join()
        store.close()


def run(name: str, url: str, key: str) -> dict[str, Any]:
    """Run one client's snippet in a process of its own: its version, and what came of each case."""
    asked = {
        "source": snippet(name),
        "names": {"URL": f"{url}/v1", "KEY": key},
        "distribution": CLIENTS[name],
    }
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    kept |= {"NO_PROXY": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it looks prices up else
    with tempfile.TemporaryDirectory() as away:  # clients look for settings where they are started
        ran = subprocess.run(
            [str((ENVIRONMENT / "bin" / "python").absolute()), str(Path(__file__).with_name("snippet.py"))],
            input=json.dumps(asked),
            cwd=away,
            env=kept,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    if ran.returncode != 0:
        raise RuntimeError(f"{name}: {ran.stderr[-4000:]}")
    return dict(json.loads(ran.stdout))


def tried(name: str, one: Endpoint, url: str) -> Outcome:
    """Run one client's snippet, and look at what it got and what came of it."""
    found = run(name, url, ADMIN_KEY)
    cases = found["cases"]
    outcome = Outcome(found["version"])
    for case, got in cases.items():
        if got["error"]:
            outcome.wrong[case] = got["error"]
    ways = set()
    for column, case in (("invoke", "ask"), ("stream", "stream")):
        got = cases[case]
        outcome.more[case] = got["said"]
        if got["error"]:
            continue
        if PLAIN not in _LINK.sub(r"\1", got["said"]):
            outcome.wrong[column] = got["said"]
        elif case == "stream" and got["pieces"] < 3:
            outcome.wrong[column] = f"in {got['pieces']} pieces: {got['said']}"
        else:
            outcome.done[column] = "yes"
        ways.add(_clicked(got["said"], one))
    if len(ways) == 1 and ways <= {"annotation", "Markdown link"}:
        outcome.done["ad clickable"] = ways.pop()
    else:
        outcome.wrong["ad clickable"] = str(ways)
    _told(cases, outcome, one)
    outcome.more |= {case: got["said"] for case, got in cases.items() if case not in CASES}
    return outcome


def _told(cases: dict[str, dict[str, str]], outcome: Outcome, one: Endpoint) -> None:
    """Whether the second turn reached the model with the first, and the refusal its caller."""
    talks = [each for each in _served(one) if each.auction.query == FURTHER]
    turns = [
        (turn.role, turn.text) for each in talks for turn in each.auction.turns if turn.role != "system"
    ]
    if not cases["conversation"]["error"] and turns == [("user", ASKED), ("assistant", PLAIN)]:
        outcome.done["conversation"] = "yes"
    else:
        outcome.wrong["conversation"] = str(turns)
    said = (cases["refused"]["said"].splitlines() or [""])[-1]  # litellm prints a page of help before it
    if not cases["refused"]["error"] and said in ("tools", "response_format", "text"):
        outcome.done["refused parameter"] = f"`{said}`"
    else:
        outcome.wrong["refused parameter"] = said


def _clicked(said: str, one: Endpoint) -> str:
    """How the only ad in what was printed could be clicked; it is, and is charged."""
    urls = _URL.findall(said)
    if len(urls) != 1:
        return f"{len(urls)} click URLs"
    before = _charged(one)
    answer = httpx.get(urls[0], follow_redirects=False, trust_env=False)
    target = answer.headers.get("location", "")
    if answer.status_code != 302 or not target.startswith("https://lumo.example/cups?x=1"):
        return f"status {answer.status_code}, to {target!r}"
    if _charged(one) != before + 1:
        return "a click that is not charged"
    return "Markdown link" if _LINK.search(said) else "annotation"


def _charged(one: Endpoint) -> int:
    return sum(len(one.store.charges(each.auction.id)) for each in _served(one))


def _served(one: Endpoint) -> list[Served]:
    return list(one.store.auctions(web.now().replace(year=2000), web.now(), None))


@cache
def outcome(name: str) -> Outcome:
    """What came of one client, at an endpoint of its own."""
    with serving() as (one, url):
        return tried(name, one, url)


def table() -> str:
    """The page's table."""
    head = f"| client | version | {' | '.join(COLUMNS)} |"
    rows = [outcome(name).row(name) for name in CLIENTS]
    return "\n".join([head, "|---" * (len(COLUMNS) + 2) + "|", *rows])


if __name__ == "__main__":
    if (reason := missing()) is not None:
        raise SystemExit(reason)
    print(table())
