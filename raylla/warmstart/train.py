"""`raylla warmstart`: the adapter that places ads, trained by the policy's own workers."""

from __future__ import annotations

from pathlib import Path

from raylla.actors.policy import PolicyTrainer
from raylla.config import Config, Tuning, Warmstart
from raylla.errors import ConfigError
from raylla.models import resolve
from raylla.policy.jobs import Lesson, TuneJob, TuneResult
from raylla.progress import Steps
from raylla.strictjson import dumps
from raylla.warmstart import rows
from raylla.world import prompts


def warmstart_settings(config: Config) -> Warmstart:
    """The config's warm start.

    Raises:
        ConfigError: it has none.
    """
    if config.warmstart is None:
        raise ConfigError("warmstart: the config has no such section; give at least warmstart.data")
    return config.warmstart


def _lessons(config: Config, split: rows.SplitAnswers) -> tuple[Lesson, ...]:
    """The rows to train on, in the Ad-LLM's own prompt."""
    made = rows.rows(split.train, warmstart_settings(config), config.seed)
    return tuple(
        Lesson(prompts.of(config.ad_llm, row.query, row.profile, row.ads, row.bids), (row.answer,))
        for row in made
    )


def train_warmstart(config: Config, target: str, storage: Path, watch: Steps) -> TuneResult:
    """Train `ad_llm.path` to place ads; the weights go to ``target``, checkpoints to ``storage``.

    Raises:
        WorldError: the data is unusable.
        RayllaError: as `PolicyTrainer.tune`.
    """
    chosen = warmstart_settings(config)
    split = rows.split_answers(rows.read_published(chosen.data), chosen.held_out, config.seed)
    taught = _lessons(config, split)
    watch.say(f"warm start: {len(taught)} rows, {len(split.test)} held out")
    source = resolve(config.ad_llm.path, "ad_llm.path")
    kept = str(storage / "checkpoints")
    job = TuneJob("v0", source, target, taught, chosen, config.seed, kept, config.ad_llm.path)
    return tune(config, chosen, job, storage, watch, "warm start")


def tune(
    config: Config, chosen: Tuning, job: TuneJob, storage: Path, watch: Steps, name: str
) -> TuneResult:
    """Run one supervised job on workers of its own, as the stage ``name``, with a line for each step."""
    dpo = config.dpo.model_copy(update={"workers": chosen.workers})
    trainer = PolicyTrainer(dpo, config.seed, config.ray.in_process, storage / "trainer", config.deadlines)

    def told(done: int, of: int, loss: float) -> None:
        watch.reach("steps", done, of)
        with (storage / "losses.jsonl").open("a") as lines:
            lines.write(dumps({"step": done, "of": of, "loss": loss}) + "\n")
        watch.say(f"step {done}/{of}: loss {loss:.3f}")

    storage.mkdir(parents=True, exist_ok=True)
    trainer.start()
    try:
        with watch.stage(name, steps=0):
            return trainer.tune(job, told)
    finally:
        trainer.stop()
