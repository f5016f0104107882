"""The stages of the loop: each reads what is committed or does its work and commits it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from raylla.actors.policy import Alignment
from raylla.actors.spans import Span
from raylla.engines.protocol import Probe
from raylla.errors import RunError
from raylla.irpo import results
from raylla.irpo.crew import Crew
from raylla.irpo.learning import Learner
from raylla.irpo.sampling import Sampled, Stream
from raylla.irpo.schedule import auctions
from raylla.irpo.scoring import group, judged_rates, rows_of, score, values_of, whole_group
from raylla.judging import about
from raylla.policy.jobs import AlignJob
from raylla.records import Answer, Auction, Click, Phase, Planned, PreferenceGroup, Reward, WeightVersion
from raylla.reward.rows import ClickRow
from raylla.runs.observe import Observer
from raylla.runs.state import Run, load_records, package_versions, save_records, write_json, write_text
from raylla.runs.timeline import TRAINER
from raylla.stop import heeded
from raylla.strictjson import dumps
from raylla.world import World, prompts
from raylla.world.bids import seed_of

TRAINING: tuple[Phase, ...] = ("reward", "preference")
TERMS = "terms.json"


def unanswered(run: Run, epoch: int, planned: Sequence[Planned]) -> list[Planned]:
    """The auctions of an epoch whose answers are not committed yet."""
    done = [
        phase
        for stage, phases in (("sample", TRAINING), ("test", ("test",)))
        if run.committed(f"epoch-{epoch}/{stage}") is not None
        for phase in phases
    ]
    return [one for one in planned if one.phase not in done]


def sample(
    run: Run,
    watch: Observer,
    epoch: int,
    planned: Sequence[Planned],
    stream: Stream,
    learner: Learner,
) -> Sampled:
    """Phases 1 and 2: answers of the current weights, and judgements. The learner gets what is whole."""
    stage = f"epoch-{epoch}/sample"
    if run.committed(stage) is not None:
        return read_sampled(run, stage, [one for one in planned if one.phase in TRAINING])
    due = {phase: stream.due(phase) for phase in TRAINING}
    with watch.stage(f"epoch {epoch}: sample", **due, judgements=0), heeded(stage):
        if run.config.irpo.overlap:
            stream.until(TRAINING, lambda: learner.advance(stream))
        else:
            for phase in TRAINING:
                stream.until([phase])
                learner.advance(stream)
                learner.settle(stream)
    sampled = stream.result(*TRAINING)
    _commit_sampled(run, watch, epoch, stage, sampled, {})
    return sampled


def test(run: Run, crew: Crew, watch: Observer, world: World, epoch: int, stream: Stream) -> None:
    """The test auctions under the same weights, which nothing else of the epoch waits for.

    Their clicks are predicted by the epoch's pCTR model, those of the last weights by the last one.
    """
    stage = f"epoch-{epoch}/test"
    if run.committed(stage) is not None:
        return
    with watch.stage(f"epoch {epoch}: test", test=stream.due("test"), judgements=0), heeded(stage):
        stream.until(["test"])
        sampled = stream.result("test")
        rows = rows_of(world, sampled, "test")
        predicted = crew.persistently(lambda: _predicted(run, crew, epoch, rows))
        sampled.terms = values_of(run, crew, world, sampled, "test")
    _commit_sampled(run, watch, epoch, stage, sampled, {"pctr": predicted})
    row = results.tested_row(run, world, sampled)
    watch.metrics(epoch - 1, {f"test/{key}": value for key, value in row.items()})


def _predicted(run: Run, crew: Crew, epoch: int, rows: list[ClickRow]) -> dict[str, float]:
    crew.ask_reward("load", run.reward(min(epoch, run.config.irpo.epochs)), run.config.pctr)
    found: dict[str, float] = crew.ask_reward("evaluate", rows)
    return found


def _commit_sampled(
    run: Run, watch: Observer, epoch: int, stage: str, sampled: Sampled, found: dict[str, Any]
) -> None:
    directory = run.fresh(run.records(stage))
    held = [planned.auction for planned in sampled.plan.values()]
    save_records(directory / "auctions.parquet", held, Auction)
    save_records(directory / "answers.parquet", sampled.answers, Answer)
    save_records(directory / "clicks.parquet", sampled.click_records(), Click)
    write_text(directory / "judged.json", dumps(sorted(sampled.clicks)))
    if sampled.terms:
        write_text(directory / TERMS, dumps(sampled.terms))
    phases = {planned.phase for planned in sampled.plan.values()}
    name = stage.rpartition("/")[2]
    report = {
        "weight_version": sampled.version,
        "wall_seconds": watch.wall[f"epoch {epoch}: {name}"],
        "samples": {phase: sum(1 for _ in sampled.of(phase)) for phase in sorted(phases)}
        | {"judgement": len(sampled.clicks)},
        "dropped": {"answer": sampled.dropped["answer"], "judgement": sampled.dropped["judgement"]},
        **found,
    }
    run.commit(stage, [answer.sample_id for answer in sampled.answers], report)
    watch.metrics(epoch - 1, {f"{name}/{key}": value for key, value in report.items()})


def read_sampled(run: Run, stage: str, planned: Sequence[Planned]) -> Sampled:
    """What a committed sampling stage brought in of the ``planned`` auctions."""
    directory = run.part(f"records/{stage}")
    plan = {item.auction.id: item for item in planned}
    report = run.committed(stage) or {}
    sampled = Sampled(plan, report["weight_version"])
    answers = load_records(directory / "answers.parquet", Answer)
    sampled.answers = [answer for answer in answers if answer.auction_id in plan]
    sampled.clicks = {name: {} for name in json.loads((directory / "judged.json").read_text())}
    for click in load_records(directory / "clicks.parquet", Click):
        sampled.clicks[click.sample_id][click.ad_id] = click.clicked
        if click.probability is not None:
            sampled.probabilities.setdefault(click.sample_id, {})[click.ad_id] = click.probability
    if (directory / TERMS).is_file():
        sampled.terms = json.loads((directory / TERMS).read_text())
    return sampled


def read_tests(run: Run, world: World) -> list[Sampled]:
    """The judged test answers of every weight version, the base model's first."""
    return [
        read_sampled(run, f"epoch-{epoch}/test", auctions(run.config, world, epoch))
        for epoch in range(1, run.config.irpo.epochs + 2)
    ]


def learn(
    run: Run, watch: Observer, epoch: int, sampled: Sampled, learner: Learner
) -> list[PreferenceGroup]:
    """Phase 1: update the pCTR model on the clicks. Phase 2: score, then winners and losers."""
    stage = f"epoch-{epoch}/learn"
    directory = run.records(stage)
    if run.committed(stage) is not None:
        return _read_groups(run, stage, sampled)
    with watch.stage(f"epoch {epoch}: learn"), heeded(stage):
        learned = learner.finish(sampled)
        judged = run.config.irpo.reward == "judge"
        rates = judged_rates(run, sampled) if judged else learned.rates
        rewards = score(run, sampled, rates, learned.terms)
        groups = _groups(run, sampled, rewards)
    run.fresh(directory)
    save_records(directory / "rewards.parquet", list(rewards.values()), Reward)
    _save_groups(run, stage, groups)
    report = {
        "wall_seconds": watch.wall[f"epoch {epoch}: learn"],
        "fit": learned.fit,
        "held_out": learned.held_out,
        "groups": len(groups),
        "pairs": sum(len(one.losers) for one in groups),
        "mean_reward": sum(one.total for one in rewards.values()) / max(1, len(rewards)),
        "terms": {
            name: sum(one[name] for one in learned.terms.values()) / max(1, len(learned.terms))
            for name in run.config.term_weights
        },
    }
    run.commit(stage, [name for one in groups for name in _members(one)], report)
    watch.metrics(epoch, {f"learn/{key}": value for key, value in report.items()})
    return groups


def _groups(run: Run, sampled: Sampled, rewards: dict[str, Reward]) -> list[PreferenceGroup]:
    by_auction: dict[str, list[Answer]] = {}
    for _, answer in sampled.of("preference"):
        if answer.sample_id in rewards:
            by_auction.setdefault(answer.auction_id, []).append(answer)
    found = []
    for answers in by_auction.values():
        totals = [rewards[answer.sample_id].total for answer in answers]
        if run.config.irpo.align == "grpo":
            found.append(whole_group(answers, totals))
        else:
            found.append(group(answers, totals, run.config.irpo.delta))
    return [one for one in found if one is not None]


def _members(one: PreferenceGroup) -> list[str]:
    return [answer.sample_id for answer in (one.winner, *one.losers)]


def _save_groups(run: Run, stage: str, groups: Sequence[PreferenceGroup]) -> None:
    """Groups name their answers by sample id; the answers are in the sample stage's records."""
    flat = [
        {
            "auction_id": one.auction_id,
            "winner": one.winner.sample_id,
            "losers": [answer.sample_id for answer in one.losers],
            "winner_reward": one.winner_reward,
            "loser_rewards": list(one.loser_rewards),
        }
        for one in groups
    ]
    write_text(run.records(stage) / "groups.json", dumps(flat))


def _read_groups(run: Run, stage: str, sampled: Sampled) -> list[PreferenceGroup]:
    by_id = {answer.sample_id: answer for answer in sampled.answers}
    return [
        PreferenceGroup(
            one["auction_id"],
            by_id[one["winner"]],
            tuple(by_id[name] for name in one["losers"]),
            one["winner_reward"],
            tuple(one["loser_rewards"]),
        )
        for one in json.loads((run.part(f"records/{stage}") / "groups.json").read_text())
    ]


def begin_align(
    run: Run,
    crew: Crew,
    epoch: int,
    groups: Sequence[PreferenceGroup],
    sampled: Sampled,
) -> Alignment:
    """Phase 3 under way: DPO, or GRPO, from the live weights, which are the reference too.

    Raises:
        RunError: there is no preference pair, or no unlike answers, to train on.
    """
    if not groups and run.config.irpo.align == "grpo":
        raise RunError(
            f"epoch {epoch}: all answers to each auction have the same reward, so there is nothing to "
            "align on; raise irpo.preference_answers or the sampling temperature"
        )
    if not groups:
        raise RunError(
            f"epoch {epoch}: no answer lies more than irpo.delta={run.config.irpo.delta} below its "
            "auction's best, so there is nothing to align on; lower irpo.delta, raise "
            "irpo.preference_answers or the sampling temperature"
        )
    name = f"v{epoch}"
    seed, read = seed_of(run.config.seed, name), _reference_messages(run, sampled, groups)
    live = crew.version
    alignment = crew.policy.begin(
        AlignJob(
            name,
            live.path,
            run.weights(name),
            tuple(groups),
            seed,
            read,
            live.name,
            run.config.ad_llm.path,
            tuple(len(sampled.plan[one.auction_id].query.turns) for one in groups) if read else (),
            run.config.prompt_room,
            run.config.grpo if run.config.irpo.align == "grpo" else None,
            run.config.ad_llm.sampling.temperature,
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
            f"epoch {epoch}: the alignment took no step on {len(job.groups)} groups; lower dpo.batch_groups"
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
    trained = f"{len(job.groups)} groups" if grpo else f"{result.pairs} pairs"
    watch.say(
        f"epoch {epoch}: {result.steps} steps on {trained}, "
        f"loss {result.losses[0]:.3f} -> {result.losses[-1]:.3f}; reference {result.reference}"
    )
    return WeightVersion(job.version, epoch, job.target, current.name), result.probe


def _reference_messages(
    run: Run, sampled: Sampled, groups: Sequence[PreferenceGroup]
) -> tuple[prompts.Messages, ...]:
    """The groups' prompts with their bids hidden, where the reference is not to read them."""
    if run.config.dpo.reference == "policy":
        return ()
    planned = [sampled.plan[one.auction_id] for one in groups]
    return tuple(
        prompts.of(run.config.ad_llm, one.query, one.profile, one.ads, [None] * len(one.ads))
        for one in planned
    )


def conclude(run: Run, watch: Observer, world: World) -> dict[str, Any]:
    """The table of every weight version on the test split; writes `results.json`.

    The commit is last, so that a run that counts as finished has its results.
    """
    sampled = read_tests(run, world)
    epochs = results.epoch_table(run, world, sampled)
    shown = results.before_and_after(world, sampled[0], sampled[-1])
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
