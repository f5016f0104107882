"""The stages of the loop: each reads what is committed or does its work and commits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from raylla.actors.spans import Span
from raylla.auction.checks import Array
from raylla.engines.protocol import Probe
from raylla.errors import RunError
from raylla.irpo import results
from raylla.irpo.crew import Crew
from raylla.irpo.learning import Learner
from raylla.irpo.sampling import Sampled
from raylla.irpo.schedule import auctions
from raylla.irpo.shards import parts
from raylla.irpo.shards.dealing import TRAINING, Dealing
from raylla.irpo.shards.shard import ScoredChunk
from raylla.judging import about
from raylla.policy.jobs import AlignJob, Alignment
from raylla.records import Phase, Planned, WeightVersion
from raylla.runs.observe import Observer
from raylla.runs.state import Run, package_versions, parts_of, write_json
from raylla.runs.timeline import TRAINER
from raylla.stop import heeded
from raylla.world import World
from raylla.world.bids import seed_of

Part = tuple[ScoredChunk, Any]
"""What the scoring of a chunk came to, and a reference to its groups."""


def sample(run: Run, watch: Observer, dealing: Dealing, learner: Learner) -> None:
    """Phases 1 and 2: answers of the current weights, and judgements. The learner gets what is whole."""
    stage = f"epoch-{dealing.epoch}/sample"
    if run.committed(stage) is not None:
        return
    due = {phase: dealing.due(phase) for phase in TRAINING}
    with watch.stage(f"epoch {dealing.epoch}: sample", **due, judgements=0), heeded(stage):
        if run.config.irpo.overlap:
            dealing.until(TRAINING, learner.advance)
        else:
            for phase in TRAINING:
                dealing.until([phase])
                learner.settle()
    _commit_sampled(run, watch, dealing, stage, TRAINING, {})


def test(run: Run, crew: Crew, watch: Observer, dealing: Dealing) -> None:
    """The test auctions under the same weights, which nothing else of the epoch waits for.

    Their clicks are predicted by the epoch's pCTR model, those of the last weights by the last one.
    """
    epoch = dealing.epoch
    stage = f"epoch-{epoch}/test"
    if run.committed(stage) is not None:
        return
    with watch.stage(f"epoch {epoch}: test", test=dealing.due("test"), judgements=0), heeded(stage):
        dealing.until(["test"])
        dealing.totals("test")
        table, predicted = crew.persistently(lambda: _tested(run, crew, dealing))
    _commit_sampled(run, watch, dealing, stage, ("test",), {"pctr": predicted})
    row = results.table_row(run.config, table)
    watch.metrics(epoch - 1, {f"test/{key}": value for key, value in row.items()})


def _tested(run: Run, crew: Crew, dealing: Dealing) -> tuple[dict[str, Array], dict[str, float]]:
    """The figures of all test queries, and what the pCTR model is found to be on their clicks."""
    crew.ask_reward("load", run.reward(min(dealing.epoch, run.config.irpo.epochs)), run.config.pctr)
    table: dict[str, Array] = {}
    for figures, rows in dealing.each(dealing.of("test"), "tested", crew.encoder):
        table |= figures
        crew.ask_reward("keep", rows)
    return table, crew.ask_reward("measure")


def _commit_sampled(
    run: Run,
    watch: Observer,
    dealing: Dealing,
    stage: str,
    phases: Sequence[Phase],
    found: dict[str, Any],
) -> None:
    totals, name = dealing.totals(*phases), stage.rpartition("/")[2]
    report = {
        "weight_version": dealing.version,
        "wall_seconds": watch.wall[f"epoch {dealing.epoch}: {name}"],
        "samples": totals.samples | {"judgement": totals.judgements},
        "dropped": {"answer": totals.dropped["answer"], "judgement": totals.dropped["judgement"]},
        **found,
    }
    run.commit(stage, dealing.sample_ids(*phases), report)
    watch.metrics(dealing.epoch - 1, {f"{name}/{key}": value for key, value in report.items()})


def read_sampled(run: Run, stage: str, planned: Sequence[Planned], tokens: bool = True) -> Sampled:
    """What a committed sampling stage brought in of the ``planned`` auctions; without ``tokens`` no token
    ids."""
    plan = {item.auction.id: item for item in planned}
    report = run.committed(stage) or {}
    sampled = Sampled(plan, report["weight_version"])
    for directory in parts_of(run.part(f"records/{stage}")):
        sampled.add(parts.read_part(directory, plan, tokens))
    return sampled


def read_test(run: Run, world: World, epoch: int) -> Sampled:
    """The judged test answers of one weight version, without token ids."""
    tested = [planned for planned in auctions(run.config, world, epoch) if planned.phase == "test"]
    return read_sampled(run, f"epoch-{epoch}/test", tested, tokens=False)


def read_tests(run: Run, world: World) -> list[Sampled]:
    """`read_test` of every weight version, the base model first."""
    return [read_test(run, world, epoch) for epoch in range(1, run.config.irpo.epochs + 2)]


def learn(run: Run, crew: Crew, watch: Observer, dealing: Dealing, learner: Learner) -> list[Part]:
    """Phase 1: update the pCTR model on the clicks. Phase 2: score, then winners and losers.

    Returns what each chunk of phase 2 came to, and a reference to its groups.
    """
    epoch = dealing.epoch
    stage = f"epoch-{epoch}/learn"
    if run.committed(stage) is not None:
        with heeded(stage):
            known = dealing.each(dealing.of("preference"), "groups")
            return [(scored, crew.stored(groups)) for scored, groups in known]
    with watch.stage(f"epoch {epoch}: learn"), heeded(stage):
        learned = learner.finish()
    scored = [chunk for chunk, _ in learned.parts]
    totals = [total for chunk in scored for total in chunk.totals]
    valued: dict[str, list[float]] = {name: [] for name in run.config.term_weights}
    for name, values in (term for chunk in scored for term in chunk.terms):
        valued[name] += values
    report = {
        "wall_seconds": watch.wall[f"epoch {epoch}: learn"],
        "fit": learned.fit,
        "held_out": learned.held_out,
        "groups": sum(chunk.groups for chunk in scored),
        "pairs": sum(chunk.pairs for chunk in scored),
        "mean_reward": sum(totals) / max(1, len(totals)),
        "terms": {name: sum(values) / max(1, len(values)) for name, values in valued.items()},
    }
    planned = zip(dealing.of("preference"), scored, strict=True)
    run.commit(stage, (name for chunk, found in planned for name in found.sample_ids(chunk)), report)
    watch.metrics(epoch, {f"learn/{key}": value for key, value in report.items()})
    return learned.parts


def begin_align(run: Run, crew: Crew, dealing: Dealing, learned: Sequence[Part]) -> Alignment:
    """Phase 3 under way: DPO, or GRPO, from the live weights, which are the reference too. The groups go
    from the shards to the trainer's workers, who read those that are lost on the way from the records.

    Raises:
        RunError: there is no preference pair, or no unlike answers, to train on.
    """
    epoch = dealing.epoch
    planned = zip(dealing.of("preference"), learned, strict=True)
    full = [(chunk, groups) for chunk, (scored, groups) in planned if scored.groups]
    held = sum(scored.groups for scored, _ in learned)
    if not held and run.config.irpo.align == "grpo":
        raise RunError(
            f"epoch {epoch}: all answers to each auction have the same reward, so there is nothing to "
            "align on; raise irpo.preference_answers or the sampling temperature"
        )
    if not held:
        raise RunError(
            f"epoch {epoch}: no answer lies more than irpo.delta={run.config.irpo.delta} below its "
            "auction's best, so there is nothing to align on; lower irpo.delta, raise "
            "irpo.preference_answers or the sampling temperature"
        )
    name = f"v{epoch}"
    live = crew.version
    alignment: Alignment = crew.policy.begin(
        AlignJob(
            name,
            live.path,
            run.weights(name),
            (),
            seed_of(run.config.seed, name),
            parent=live.name,
            base=run.config.ad_llm.path,
            room=run.config.prompt_room,
            grpo=run.config.grpo if run.config.irpo.align == "grpo" else None,
            temperature=run.config.ad_llm.sampling.temperature,
            parts=tuple(groups for _, groups in full),
            held=held,
            again=dealing.kept_groups([chunk for chunk, _ in full]),
        )
    )
    if not run.config.irpo.overlap:
        with heeded(f"epoch-{epoch}/align"):
            alignment.wait()
    return alignment


def align(
    run: Run, watch: Observer, epoch: int, current: WeightVersion, alignment: Alignment
) -> tuple[WeightVersion, Probe]:
    """Phase 3 done: the next weight version, and the trainer's probe of it.

    Raises:
        RunError: no step was taken.
    """
    job = alignment.job
    stage = f"epoch-{epoch}/align"
    with watch.stage(f"epoch {epoch}: align", steps=0), heeded(stage):
        result = alignment.wait(lambda done, of, _: watch.reach("steps", done, of))
    if result.steps == 0:
        raise RunError(
            f"epoch {epoch}: the alignment took no step on {job.count} groups; lower dpo.batch_groups"
        )
    watch.timeline.add(Span(f"{TRAINER}[0]", "align", result.began, result.began + result.seconds))
    report = {
        "weight_version": job.version,
        "wall_seconds": round(result.seconds, 3),
        "probe": asdict(result.probe),
        "steps": result.steps,
        "pairs": result.pairs,
        "tokens": result.tokens,
        "reference": asdict(result.reference),
        "losses": result.losses,
        "accuracies": result.accuracies,
        "margins": result.margins,
        "learning_rates": result.learning_rates,
        "grad_norms": result.grad_norms,
        "winner_shifts": result.shifts,
    }
    if run.config.irpo.align == "grpo":
        report |= {"clipped": result.clipped, "kl": result.divergences}
    run.commit(stage, [], report)
    watch.metrics(epoch, {f"align/{key}": value for key, value in report.items() if key != "probe"})
    watch.artifact(job.version, "weights", run.weights(job.version), points=True)
    grpo = run.config.irpo.align == "grpo"
    trained = f"{job.count} groups" if grpo else f"{result.pairs} pairs"
    watch.say(
        f"epoch {epoch}: {result.steps} steps on {trained}, "
        f"loss {result.losses[0]:.3f} -> {result.losses[-1]:.3f}; reference {result.reference}"
    )
    return WeightVersion(job.version, epoch, job.target, current.name), result.probe


def conclude(run: Run, watch: Observer, world: World) -> dict[str, Any]:
    """The table of every weight version on the test split; writes `results.json`.

    The commit is last, so that a run that counts as finished has its results.
    """
    last = run.config.irpo.epochs + 1
    tests = (read_test(run, world, epoch) for epoch in range(1, last + 1))  # one in memory at a time
    epochs = [results.epoch_row(run, world, epoch, tested) for epoch, tested in enumerate(tests, start=1)]
    shown = results.before_and_after(world, read_test(run, world, 1), read_test(run, world, last))
    report = {"wall_seconds": 0.0}
    commits = run.commits | {"conclude": report}
    found = {
        "name": run.config.name,
        "clicks": about.sources(run.config.user_llm),
        "epochs": epochs,
        "wall_seconds": {stage: one["wall_seconds"] for stage, one in commits.items()},
        "timeline": watch.timeline.epochs,
        "peak_memory_bytes": watch.peak_memory_bytes,
        "restarts": dict(watch.restarts),
        "dropped": _added(run, "dropped"),
        "samples": _added(run, "samples"),
        "versions": package_versions(),
        "examples": shown,
    }
    write_json(run.path / "results.json", found)
    watch.table(run.config.irpo.epochs, "test/examples", shown)
    if run.committed("conclude") is None:
        run.commit("conclude", [], report)
    return found


def _added(run: Run, key: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for report in run.commits.values():
        for name, value in report.get(key, {}).items():
            total[name] = total.get(name, 0) + value
    return total
