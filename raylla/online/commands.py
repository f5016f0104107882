"""`raylla simulate`."""

from __future__ import annotations

from typing import Annotated

import typer

from raylla import config as settings
from raylla.strictjson import dumps
from raylla.terminal import console, told


@told
def simulate(
    run: Annotated[str, typer.Argument(help="a run: its users, User-LLM and ads")],
    url: Annotated[str, typer.Option(help="the endpoint")] = "http://127.0.0.1:8000",
    asks: Annotated[int, typer.Option(min=1, help="questions")] = 200,
    concurrency: Annotated[int, typer.Option(min=1, help="questions at once")] = 8,
    seed: Annotated[int, typer.Option(help="another seed asks other questions")] = 0,
    key: Annotated[
        str | None,
        typer.Option(envvar="RAYLLA_ADMIN_KEY", help="API key; none: the one that `raylla serve` has made"),
    ] = None,
) -> None:
    """Have simulated users ask a running endpoint, read its answers and click its ads."""
    from raylla.online import simulation
    from raylla.runs.state import Run
    from raylla.serving.security import keyring

    key = (key or "").strip() or keyring.read_keyring(settings.Serving().database).admin_key
    traffic = simulation.simulate_users(Run.open(run), url, key, asks, concurrency, seed)
    console.print_json(dumps(traffic.figures()))
