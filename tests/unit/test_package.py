"""What is installed with the package: everything that it imports, its configs, one version."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raylla
from raylla import config
from raylla.cli import app
from raylla.config import reading
from raylla.errors import ConfigError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(*extras: str) -> set[str]:
    """Distributions that an installation with these extras asks for."""
    wanted = list(PROJECT["dependencies"])
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    return {re.split(r"[\[<>=!~ ;]", one)[0].lower().replace("_", "-") for one in wanted}


def imported(*folders: str) -> dict[str, str]:
    """Every module of others that files below ``folders`` import, with one of the files."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [one.name for one in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    names = [node.module]
                found |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    ours = {"raylla", "tests", *sys.stdlib_module_names}
    return {name: path for name, path in found.items() if name not in ours}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folders", "extras"),
    [(["raylla", "jobs"], ["cpu", "cuda", "otel", "postgres"]), (["tests"], ["cpu", "postgres", "dev"])],
    ids=["package", "tests"],
)
def test_what_is_imported_is_declared(folders: list[str], extras: list[str]) -> None:
    distributions = importlib.metadata.packages_distributions()
    wanted = declared(*extras)
    missing = {}
    for module, path in imported(*folders).items():
        names = {one.lower().replace("_", "-") for one in distributions.get(module, [module])}
        if not names & wanted:
            missing[module] = path
    assert not missing


def test_one_version_everywhere() -> None:
    assert raylla.__version__ == PROJECT["version"]
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"raylla {raylla.__version__}\n")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    copy = directory / "source"
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0"):
        kept = name.startswith(("raylla/", "configs/")) or "/" not in name
        if name and kept and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, "--wheel-dir", str(directory), str(copy)], check=True, capture_output=True)
    (made,) = directory.glob("raylla-*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(directory / "installed")
    return directory / "installed"


@pytest.mark.slow
def test_an_installed_wheel_knows_the_configs_by_name(wheel: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
    assert sorted(path.name for path in (wheel / "raylla" / "configs").glob("*.yaml")) == names
    code = "import raylla, raylla.config as c, pathlib as p"
    code += "; print(c.load_config(p.Path('pocket')).digest())"
    code += "; print(c.load_config(p.Path('configs/pocket.yaml')).digest()); print(raylla.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=True,
    )
    ours = config.load_config(ROOT / "configs" / "pocket.yaml").digest()
    assert found.stdout.split()[:2] == [ours, ours]
    assert found.stdout.split()[2].startswith(str(wheel))


def test_a_config_by_name_and_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load_config(Path("pocket")).name == "pocket"
    assert config.located(Path("pocket")) == ROOT / "configs" / "pocket.yaml"
    with pytest.raises(ConfigError, match=r"config pockte: .*pocket, qwen3-4b-1node, "):
        config.load_config(Path("pockte"))
    with pytest.raises(ConfigError, match=r"config elsewhere/pocket.yaml: "):
        config.load_config(Path("elsewhere/pocket.yaml"))
    Path("pocket").write_text("name: mine")
    assert config.load_config(Path("pocket")).name == "mine"
    assert reading.SHIPPED == ROOT / "configs"


def test_a_vision_package_of_another_build_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raylla import models

    models.check_places(config.Config())
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"torchvision::nms does not exist.*`pip uninstall torchvision`"):
        models.check_places(config.Config())
