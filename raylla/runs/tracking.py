"""Weights & Biases behind a queue: a dead, slow or absent W&B costs a warning and nothing else.

Conventions: the epoch is the step; metrics are named by their stage (`sample/`, `learn/`, `align/`,
`test/`); sample answers are tables; weight versions are artifacts that point at the run directory, and the
report is one that holds its page. A resumed run, and a report made later, go on in the same W&B run.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from raylla.config import Config
from raylla.storage import remote
from raylla.terminal import plain_console

IDENTITY = "wandb-id"
"""The file in a run directory that names its W&B run."""

SERVICE = "wandb-core"
"""The name of the process that W&B sends from."""

SERVICE_ADDRESS = "WANDB_SERVICE"
"""Environment variable by which a process below this one finds that process."""


class Tracker:
    """One run's W&B; calls never block and never raise. `close` waits ``wandb.timeout`` at most."""

    def __init__(self, config: Config, directory: Path) -> None:
        self._timeout = config.wandb.timeout
        self._queue: queue.Queue[Callable[[Any, Any], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        if config.wandb.mode != "disabled":
            self._thread = threading.Thread(target=self._serve, args=(config, directory), daemon=True)
            self._thread.start()

    def log(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Metrics of an epoch."""
        self._put(lambda wandb, run: run.log({"epoch": epoch, **values}))

    def table(self, epoch: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of an epoch, one row per mapping, all with the same keys."""
        if not rows:
            return
        columns = list(rows[0])
        data = [[str(row[column]) for column in columns] for row in rows]
        self._put(
            lambda wandb, run: run.log({"epoch": epoch, name: wandb.Table(columns=columns, data=data)})
        )

    def artifact(self, name: str, kind: str, path: Path | str, points: bool = False) -> None:
        """A directory as an artifact: its files, or where it ``points`` a reference to their place."""

        def keep(wandb: Any, run: Any) -> None:
            made = wandb.Artifact(f"{run.id}-{name}", type=kind)
            if points:
                made.add_reference(str(path) if remote(str(path)) else f"file://{path}", checksum=False)
            else:
                made.add_dir(str(path))
            run.log_artifact(made)

        self._put(keep)

    def close(self) -> None:
        """Finish what is queued, within the timeout; what is not sent by then stays in the run directory,
        from where `wandb sync` sends it.
        """
        if self._thread:
            self._queue.put(None)
            self._thread.join(self._timeout)
            if self._thread.is_alive():
                _end_service()

    def _put(self, act: Callable[[Any, Any], None]) -> None:
        if self._thread:
            self._queue.put(act)

    def _serve(self, config: Config, directory: Path) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb

            run = wandb.init(
                project=config.wandb.project,
                name=config.name,
                id=_identity(directory),
                resume="allow" if config.wandb.mode == "online" else None,
                dir=str(directory),
                mode=config.wandb.mode,
                config=config.model_dump(mode="json"),
            )
            run.define_metric("epoch")
            run.define_metric("*", step_metric="epoch")
            while (act := self._queue.get()) is not None:
                act(wandb, run)
            run.finish()
        except Exception as error:
            plain_console(stderr=True).print(f"W&B is off from here on: {error}", style="dim")


def _end_service() -> None:
    """Kill the process that W&B keeps below this one: its hooks at exit wait for it without a deadline.

    Those hooks are taken away, which would fail at a process that is gone. Its hooks at imports go too:
    each would fail to tell that process of an import, and the import with it.
    """
    for child in psutil.Process().children():
        if child.name() == SERVICE:
            child.kill()
            # Else a process below this one would wait for it.
            os.environ.pop(SERVICE_ADDRESS, None)
            with suppress(ConnectionError):
                sys.modules["wandb"].setup().ensure_service().teardown(0)
    if hooks := sys.modules.get("wandb.sdk.lib.import_hooks"):
        hooks.unregister_all_post_import_hooks()


def _identity(directory: Path) -> str:
    path = directory / IDENTITY
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text().strip()
