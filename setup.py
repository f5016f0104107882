"""What pyproject.toml has no words for: the repository's configs/ are raylla/configs/ in a wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Copies the configs beside the modules; an editable install finds them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "raylla" / "configs"
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted((Path(__file__).parent / "configs").glob("*.yaml")):
                self.copy_file(str(path), str(target / path.name))


setup(cmdclass={"build_py": WithConfigs})
