"""A bucket: an S3 server of moto's, which keeps in memory what it is given."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

BUCKET = "runs"
COPY = "import fsspec, sys; fsspec.filesystem('s3').get(sys.argv[1], sys.argv[2], recursive=True)"
MAKE = f"import fsspec; fsspec.filesystem('s3').mkdir({BUCKET!r})"


class Bucket:
    """The server, with one bucket. ``inside``: what is put before a command that is to run where it is."""

    def __init__(self, log: Path, host: str, port: int, inside: Sequence[str] = ()) -> None:
        for package in ("moto", "flask", "flask_cors", "s3fs"):
            if find_spec(package) is None:
                pytest.skip(f"no {package}, which makes a bucket: bash dev.sh install")
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        """By which a process finds it."""
        self._inside = list(inside)
        command = [*inside, sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
        with log.open("wb") as file:
            self._server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        end = time.monotonic() + 60
        while self._python(MAKE).returncode:
            if time.monotonic() > end or self._server.poll() is not None:
                self.close()
                raise AssertionError(log.read_text())
            time.sleep(0.2)

    def copy(self, name: str, to: Path) -> Path:
        """What lies below a name, in a directory of this machine."""
        found = self._python(COPY, f"{BUCKET}/{name}/", f"{to}/")
        assert found.returncode == 0, found.stderr
        return to

    def close(self) -> None:
        """End it; what it holds is gone."""
        self._server.kill()
        self._server.wait(timeout=30)

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self._inside, sys.executable, "-c", *arguments]
        environment = os.environ | self.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
