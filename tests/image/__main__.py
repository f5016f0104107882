"""Makes the image of cluster/Dockerfile in a folder by debootstrap and chroot, as root, and tries it.

`python -m tests.image FOLDER [--set cpu|cuda] [--bind FOLDER]...` takes minutes and 5 GB, 15 with CUDA.
What this shell's environment tells pip, uv and TLS holds for the steps too, not for the image. --bind shows
them a folder of this machine at its own path, one of wheels say.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from tests.image.dockerfile import Image, carry_out

ROOT = Path(__file__).parents[2]

PROMISES = (
    "raylla --version",
    "raylla check configs/pocket.yaml",
    "python -c 'import torch, vllm, ray, deepspeed, trl, psycopg, s3fs, gcsfs, jobs'",
    "ray --version && wget --version && ps --version && cc --version",
    "test $(id -u) = 1000 && test -w /runs",
)
"""What runs in a container of the image without a word more, as its user in its folder."""

NEEDED = re.compile(r"(PIP_|UV_|SSL_CERT_)\w+|(https?|no)_proxy", re.IGNORECASE)
"""Variables of this shell that the steps see: where packages are, and whom to trust."""

SEEN = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
"""Files of this machine that stand over the image's while a command runs."""

INSIDE = """
root=$1 user=$2 folder=$3 command=$4
shift 4
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
for path in "$@"; do
    if [ -d "$path" ]; then mkdir -p "$root$path"; else touch "$root$path"; fi
    mount --bind "$path" "$root$path"
done
HOME=$(chroot "$root" getent passwd "$user" | cut -d: -f6)
export HOME
exec chroot --userspec="$user" "$root" /bin/sh -c "cd '$folder' && $command"
"""


class Chroot:
    """A folder that debootstrap fills; commands run in it, with mounts and processes of their own."""

    def __init__(self, bind: list[str]) -> None:
        self._bind = bind

    def start(self, image: Image, base: str) -> None:
        """Debian's own Python stands for that of the official image ``python:X.Y-slim-SUITE``."""
        official = re.fullmatch(r"python:(\d+\.\d+)-slim-(\w+)", base)
        assert official, f"FROM {base}: only python:X.Y-slim-SUITE is known"
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates,python3-venv,python3-dev"]
        subprocess.run([*command, official[2], str(image.root)], check=True)
        image.variables["PATH"] = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
        self.run(image, f"python{official[1]} --version")

    def run(self, image: Image, command: str) -> None:
        told = {name: value for name, value in os.environ.items() if NEEDED.fullmatch(name)}
        told |= image.arguments | image.variables
        inside = [str(image.root), image.user, str(image.folder), command, *SEEN, *self._bind]
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", INSIDE, "sh"]
        subprocess.run([*own, *inside], env=told, check=True)

    def own(self, image: Image, path: Path, owner: str) -> None:
        self.run(replace(image, user="root"), f"chown -R {owner}: /{path.relative_to(image.root)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.image", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the image's files go; it must not exist")
    parser.add_argument("--set", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bind", action="append", default=[], metavar="FOLDER")
    told = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("chroot wants root; run it as root")
    if shutil.which("debootstrap") is None:
        parser.error("debootstrap is not there; apt-get install debootstrap")
    if missing := [one for one in told.bind if not Path(one).is_absolute() or not Path(one).exists()]:
        parser.error(f"--bind {missing[0]}: give the absolute path of something that is there")
    try:
        told.folder.mkdir(parents=True)
    except OSError as error:
        parser.error(f"{told.folder}: {error.strerror}; give a folder that does not exist and can be made")
    image, machine = Image(told.folder.resolve()), Chroot(told.bind)
    carry_out(ROOT / "cluster" / "Dockerfile", ROOT, image, machine, {"SET": told.set})
    for promise in PROMISES:
        print("+", promise, flush=True)
        machine.run(image, promise)


if __name__ == "__main__":
    main()
