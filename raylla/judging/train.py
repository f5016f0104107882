"""`raylla judge train`: the adapter that judges, trained by the policy's own workers."""

from __future__ import annotations

from pathlib import Path

from raylla.config import Config, Judging
from raylla.errors import ConfigError
from raylla.judging import about, published
from raylla.judging.lessons import lessons
from raylla.models import resolve
from raylla.policy.jobs import TuneJob, TuneResult
from raylla.progress import Steps
from raylla.warmstart.train import tune


def judge_settings(config: Config) -> Judging:
    """The config's settings of a judge.

    Raises:
        ConfigError: it has none.
    """
    if config.judging is None:
        raise ConfigError("judging: the config has no such section; give at least judging.data")
    return config.judging


def train_judge(config: Config, target: Path, storage: Path, watch: Steps) -> TuneResult:
    """Teach `judging.base` the decisions of `judging.judges`; the adapter goes to ``target``, checkpoints
    to ``storage``.

    Raises:
        DataError: the data is unusable.
        RayllaError: as `PolicyTrainer.tune`.
    """
    chosen = judge_settings(config)
    source = resolve(chosen.base, "judging.base")
    data = published.read_impressions(chosen.data)
    judges = data.chosen(chosen.judges)
    learned, apart = published.split_impressions(data.impressions, chosen.held_out, chosen.seed)
    watch.say(f"judge: {len(learned)} rows, {len(apart)} held out; taught by {', '.join(judges)}")
    job = TuneJob(
        "judge",
        source,
        str(target),
        lessons(learned, judges),
        chosen,
        chosen.seed,
        str(storage / "checkpoints"),
        chosen.base,
    )
    result = tune(config, chosen, job, storage, watch, "teach the judge")
    about.write_taught(target, about.Taught(judges, chosen.seed, chosen.held_out))
    return result
