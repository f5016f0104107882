"""The runs that a config's evaluation needs: training seeds and variants; trains what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raylla import config as settings
from raylla.config import Config
from raylla.errors import ConfigError
from raylla.evaluation.setup import check_settings, check_terms
from raylla.irpo import loop
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.storage import within

Watch = Callable[[Config, Path], Observer]


def planned(config: Config) -> dict[str, Config]:
    """Directory name -> config of every run: the seeds first, then the variants under the first seed.

    Raises:
        ConfigError: a seed occurs twice, or a variant has the config's own name or is unusable.
    """
    plan = config.evaluation
    if len(set(plan.seeds)) < len(plan.seeds):
        raise ConfigError(f"evaluation.seeds={list(plan.seeds)}: give each seed once")
    first = config.model_copy(update={"seed": plan.seeds[0]})
    configs = {f"seed-{seed}": config.model_copy(update={"seed": seed}) for seed in plan.seeds}
    for name, overrides in plan.variants.items():
        if name == config.name or name in configs:
            raise ConfigError(
                f"evaluation.variants.{name}: the name is taken by the config's own runs; choose another"
            )
        source = f"evaluation.variants.{name}"
        configs[name] = settings.changed(first, None, (*overrides, f"name={name}"), source)
    return configs


def check_planned(config: Config) -> None:
    """Refuse reward terms, of the config or of a variant, that cannot be had.

    Raises:
        ConfigError: names the term, or the variant that is none.
    """
    for wanted in planned(config).values():
        check_terms(wanted)


def runs(config: Config, directory: str | Path, watch: Watch) -> list[Run]:
    """Train what is missing of `planned` in ``directory``, or go on with it; all of it, finished.

    Raises:
        ConfigError: the config plans nothing that can be evaluated.
        RunError: a directory there belongs to another config, or as `evaluate.check_settings`.
        RayllaError: what `irpo.loop.train_run` raises.
    """
    check_settings(config)
    check_planned(config)
    opened = []
    for name, wanted in planned(config).items():
        run = Run.create(within(directory, name), wanted)
        if run.committed("conclude") is None:
            with run.alone():
                loop.train_run(run, watch(wanted, run.path))
        opened.append(Run.open(run.place))
    return opened
