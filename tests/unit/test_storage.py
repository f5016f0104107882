"""A run on a path or in a bucket: commits, drivers that die or come twice, disks and buckets that fail."""

from __future__ import annotations

import shutil
import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from typer.testing import CliRunner

from raylla import models
from raylla.actors import read_weights
from raylla.cli import app
from raylla.config import Config, parse_config
from raylla.errors import ConfigError, DeadlineError, RunError, StorageError
from raylla.plan.architecture import architecture
from raylla.records import Answer
from raylla.runs import versions
from raylla.runs.state import Run, load_records, save_records
from raylla.serving.deploy.versions import Target, find
from raylla.storage import exists, here, making, places, within
from tests.buckets import BUCKET, Bucket

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
ANSWERS = [Answer("s/0", "s", 0, "v0", "hi @", (1, 2), (3,), None)]
PROBE = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-0.5]}


class Faulty(LocalFileSystem):  # type: ignore[misc]
    """A bucket on a directory: no folders to make, nothing replaced, and it can refuse, hang or be gone."""

    protocol = "faulty"
    fault: Any = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "auto_mkdir": True})

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if Faulty.fault:
            Faulty.fault(path)
        super().pipe_file(path, value, mode, **options)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        if Faulty.fault:
            Faulty.fault(rpath)
        if self.exists(rpath):
            raise FileExistsError(rpath)
        super().put_file(lpath, rpath, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(LocalFileSystem._strip_protocol(path.replace("faulty://", "file://")))


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[str]:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    yield f"faulty://{tmp_path}/bucket/run"
    Faulty.fault = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = Bucket(tmp_path_factory.mktemp("s3") / "log", "127.0.0.1", port)
    yield found
    found.close()


@pytest.fixture
def s3(server: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """In a bucket of an S3 server."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}/run"


@pytest.fixture(params=["path", "file", "memory", "faulty", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same run's place on a disk and in four kinds of bucket."""
    if request.param in ("faulty", "s3"):
        return str(request.getfixturevalue(request.param))
    there = {"file": f"file://{tmp_path}/bucket/run", "memory": f"memory://{tmp_path.name}/run"}
    return str({"path": tmp_path / "run", **there}[request.param])


def work(run: Run, epoch: int) -> None:
    """What an epoch leaves behind: records, a weight version, a pCTR model, commits."""
    directory = run.fresh(run.records(f"epoch-{epoch}/sample"))
    save_records(directory / "answers.parquet", ANSWERS, Answer)
    run.commit(f"epoch-{epoch}/sample", [f"{epoch}/a", f"{epoch}/b"], {"wall_seconds": 1.0})
    for place in (run.weights(f"v{epoch}"), run.reward(epoch)):
        with making(place) as fresh:
            (fresh / "config.json").write_text(f'"{epoch}"')
    run.commit(
        f"epoch-{epoch}/align", [], {"weight_version": f"v{epoch}", "probe": PROBE, "wall_seconds": 1.0}
    )


def test_a_driver_on_an_empty_machine_finds_every_commit(where: str) -> None:
    run = Run.create(where, Config())
    with run.alone():
        work(run, 1)
        (run.path / "metrics.jsonl").write_text("1\n")
    again = Run.create(where, Config())
    assert (again.path == run.path) == ("://" not in where)
    assert again.commits == run.commits
    assert again.ledger.read_bytes() == run.ledger.read_bytes()
    assert load_records(again.part("records/epoch-1/sample") / "answers.parquet", Answer) == ANSWERS
    assert (again.path / "metrics.jsonl").read_text() == "1\n"
    with again.alone():
        with (again.path / "metrics.jsonl").open("a") as file:
            file.write("2\n")
        work(again, 2)
    third = Run.open(where)
    assert (third.path / "metrics.jsonl").read_text() == "1\n2\n"
    assert list(third.commits) == [f"epoch-{n}/{s}" for n in (1, 2) for s in ("sample", "align")]
    assert [version.name for version, _ in versions.committed(third)] == ["v0", "v1", "v2"]
    with here(third.weights("v2")) as found:
        assert (found / "config.json").read_text() == '"2"'
    with pytest.raises(RunError, match="another config"):
        Run.create(where, parse_config({"seed": 1}, "x"))
    with pytest.raises(RunError, match="not a run directory"):
        Run.open(within(where, "else"))
    with pytest.raises(RunError, match="not empty and not a run directory"):
        Run.create(within(where, "weights"), Config())


def test_a_driver_killed_within_a_commit_has_not_committed(faulty: str, tmp_path: Path) -> None:
    run = Run.create(faulty, Config())
    with run.alone():
        work(run, 1)

        def killed(path: str) -> None:
            if "/ledger/" in path:
                raise KeyError("killed")  # a driver's own kind of error

        Faulty.fault = killed
        with pytest.raises(StorageError, match="committing failed: KeyError"):
            run.commit("epoch-2/sample", ["x"], {"wall_seconds": 1.0})
        Faulty.fault = None
    ledger = tmp_path / "bucket" / "run" / "ledger"
    torn = ledger / "00000003"
    torn.write_text('{"stage": "epoch-2/sample", "sample_id": "x"}\n{"stage": "epo')
    again = Run.open(faulty)
    assert list(again.commits) == ["epoch-1/sample", "epoch-1/align"]
    with again.alone():
        assert not torn.exists()
        again.commit("epoch-2/sample", ["x"], {"wall_seconds": 1.0})
    assert list(Run.open(faulty).commits)[-1] == "epoch-2/sample"
    for damage in ("cut", "missing"):
        (ledger / "00000002").write_text("{") if damage == "cut" else (ledger / "00000002").unlink()
        with pytest.raises(RunError, match="ledger/00000002 is missing or damaged and commits follow"):
            Run.open(faulty)


@pytest.mark.parametrize("kind", ["faulty", "s3"])
def test_the_driver_that_comes_last_has_the_run(kind: str, request: pytest.FixtureRequest) -> None:
    bucket: str = request.getfixturevalue(kind)
    first, second = Run.create(bucket, Config()), Run.create(bucket, Config())
    with first.alone():
        first.commit("world", ["a"], {"wall_seconds": 1.0})
        with second.alone():
            assert list(second.commits) == ["world"]
            with pytest.raises(RunError, match="taken over by another driver"):
                first.commit("epoch-1/sample", ["b"], {"wall_seconds": 1.0})
            second.commit("epoch-1/sample", ["c"], {"wall_seconds": 1.0})
            # Two that both believe to have it: one number of the ledger is given once.
            second._claimed = first.home._claimed = False  # type: ignore[attr-defined]
            with pytest.raises(RunError, match="taken over by another driver"):
                first.commit("epoch-1/sample", ["b"], {"wall_seconds": 1.0})
        first.home._token = second.home._token  # type: ignore[attr-defined]
    assert b'"c"' in Run.open(bucket).ledger.read_bytes()
    assert b'"b"' not in Run.open(bucket).ledger.read_bytes()


def test_a_vanished_bucket_leaves_the_last_commit(faulty: str, tmp_path: Path) -> None:
    run = Run.create(faulty, Config())
    with run.alone():
        run.commit("world", ["a"], {"wall_seconds": 1.0})
        (tmp_path / "bucket").rename(tmp_path / "away")
        with pytest.raises(StorageError, match="is gone from its bucket"):
            run.commit("epoch-1/sample", ["b"], {"wall_seconds": 1.0})
        (tmp_path / "away").rename(tmp_path / "bucket")
    assert list(run.commits) == ["world"]
    assert list(Run.open(faulty).commits) == ["world"]
    with pytest.raises(StorageError, match="nothing is there"), here(run.weights("v9")):
        pass


def test_what_cannot_be_written_is_told_before_models_load(faulty: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("ray: {in_process: true}\nwandb: {mode: disabled}\n")

    def said(status: int, *arguments: str) -> str:
        done = CliRunner().invoke(app, [arguments[0], str(config), *arguments[1:]])
        assert done.exit_code == status, done.output
        return " ".join(done.output.split())

    def refuse(path: str) -> None:
        raise PermissionError(f"Access Denied: {path}")

    assert f"storage {faulty}: writable" in said(0, "check", "--run", faulty)
    Faulty.fault = refuse
    for command in ("train", "check"):
        assert "writing a probe failed: PermissionError: Access Denied" in said(2, command, "--run", faulty)
    (tmp_path / "file").touch()
    assert "cannot be written: Not a directory" in said(2, "train", "--run", str(tmp_path / "file" / "run"))
    assert "Protocol not known: s4" in said(2, "train", "--run", "s4://b/r")


@pytest.mark.parametrize(
    ("url", "way_out"),
    [
        ("s3://b/r", "install raylla's extra s3 (the package s3fs) on every node"),
        ("gs://b/r", "install raylla's extra gcs (the package gcsfs) on every node"),
        ("abfs://b/r", "install it beside raylla on every node"),
    ],
)
def test_a_missing_driver_of_a_bucket_names_what_brings_it(
    url: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(url: str) -> None:
        raise ImportError("Install it")

    monkeypatch.setattr(places, "url_to_fs", absent)
    with pytest.raises(ConfigError, match=f"{url}: .* is not installed here") as error:
        Run.create(url, Config())
    assert str(error.value).endswith(way_out)
    named = {extra: wanted[0] for extra, wanted in EXTRAS.items() if extra in ("s3", "gcs")}
    assert dict(places.DRIVERS.values()) == named


def test_a_bucket_that_hangs_is_a_deadline(faulty: str) -> None:
    run = Run.create(faulty, parse_config({"deadlines": {"storage": 99}}, "x"))
    woken = threading.Event()
    with run.alone():
        assert run.home.deadline == 99
        run.home.deadline = 0.3
        Faulty.fault = lambda path: woken.wait(60)
        with pytest.raises(DeadlineError, match=r"was not done within 0\.3 s \(deadlines\.storage\)"):
            run.commit("world", ["a"], {"wall_seconds": 1.0})
        Faulty.fault, run.home.deadline = None, 99
        woken.set()
    assert not run.commits


def test_readers_of_a_machine_share_a_copy(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: str(tmp_path))
    with making(within(where, "weights", "v1")) as fresh:
        (fresh / "config.json").write_text("1")
    place = within(where, "weights", "v1")
    with here(place) as one, here(place) as other:
        assert one == other
    assert one.exists() == ("://" not in where)
    if "://" in where:
        left = one.parent / "0123"  # of a reader that was killed
        left.mkdir()
        with here(place):
            assert not left.exists()
    with making(place) as fresh:
        (fresh / "config.json").write_text("2")
    with here(place) as one:
        assert (one / "config.json").read_text() == "2"
    with pytest.raises(FileNotFoundError), making(place) as fresh:
        shutil.copy(tmp_path / "absent", fresh / "config.json")
    with here(place) as one:
        assert [file.name for file in one.iterdir()] == ["config.json"]
        assert (one / "config.json").read_text() == "2"


def test_a_model_may_lie_behind_a_url(faulty: str) -> None:
    pocket = models.POCKET / "ad-llm"
    place = within(faulty, "model")
    with pytest.raises(ConfigError, match=r"ad_llm\.path='faulty:.*: there is no config\.json at the URL"):
        models.check_places(parse_config({"ad_llm": {"path": place}}, "x"))
    with making(place) as fresh:
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            shutil.copy(pocket / name, fresh / name)
    config = parse_config({"ad_llm": {"path": place}}, "x")
    assert models.check_places(config)["ad_llm.path"] == place
    assert architecture(place, "ad_llm.path") == architecture("pocket:ad-llm", "ad_llm.path")
    ours, theirs = read_weights(place), read_weights(pocket)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_old_versions_are_collected_and_never_one_in_use(where: str) -> None:
    run = Run.create(where, parse_config({"storage": {"keep_versions": 2}, "irpo": {"epochs": 6}}, "x"))
    with run.alone():
        for epoch in range(1, 4):
            work(run, epoch)
            versions.collect(run, {f"v{epoch}", "v1"})  # v1 is what this process began with
        assert versions.collected(run) == []
        assert find(where, "v2") == Target(run.place, "v2")  # `raylla serve` and `raylla deploy` ask so
        for epoch in (4, 5):
            work(run, epoch)
            versions.collect(run, {f"v{epoch}", "v1"})
        assert versions.collected(run) == ["v3"]
        versions.collect(run, {"v5"})
    again = Run.open(where)
    assert versions.collected(again) == ["v3", "v1"]
    assert [version.name for version, _ in versions.committed(again)] == ["v0", "v2", "v4", "v5"]
    assert [version.parent for version, _ in versions.committed(again)] == [None, "v1", "v3", "v4"]
    assert not exists(again.weights("v3"))
    assert exists(again.weights("v2"))
    with pytest.raises(
        RunError, match=r"'v1'; it was collected \(storage.keep_versions=2\).*v0, v2, v4, v5"
    ):
        versions.named(again, "v1")
    with pytest.raises(RunError, match="no weight version 'v9'; there are v0, v2"):
        find(where, "v9")
    # A removal that was killed half way goes on.
    with making(again.weights("v3")) as fresh:
        (fresh / "half").touch()
    with again.alone():
        versions.collect(again, {"v5"})
    assert not exists(again.weights("v3"))


def test_nothing_is_collected_unless_asked_for(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Config())
    work(run, 1)
    work(run, 2)
    versions.collect(run, {"v2"})
    assert len(versions.committed(run)) == 3


def test_a_url_that_drivers_read_as_two_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("{}")
    place = f"file://{tmp_path}/a::b/weights/v1"
    with pytest.raises(ConfigError, match="'::'"), making(place):
        pass
    with pytest.raises(ConfigError, match="'::'"):
        Run.create(f"memory://{tmp_path.name}/r::x", Config())
    assert (tmp_path / "a" / "run.json").exists()
