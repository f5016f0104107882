"""The stages of the loop: each reads what is committed or does its work and commits it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from raylla.actors.pool import DONE, next_item
from raylla.auction import parse
from raylla.auction.checks import Array
from raylla.engines.protocol import Generated, Probe, Request
from raylla.errors import RunError, WorldError
from raylla.evaluation.table import Outcome, figures, per_query
from raylla.irpo.crew import Crew
from raylla.irpo.preference import group
from raylla.irpo.sampling import Sampled, sample_answers, seed_of
from raylla.irpo.scoring import click_rows, judged_rates, predicted_rates, rows_of, score
from raylla.irpo.state import Run, load_records, package_versions, save_records, write_json, write_text
from raylla.observe import Observer
from raylla.policy.jobs import AlignJob
from raylla.records import Answer, Auction, Click, Planned, PreferenceGroup, Reward, WeightVersion
from raylla.world import World, build, clicks, prompts, store


def draft_world(run: Run) -> World:
    """The run's world; before its queries are asked, the imported or synthetic one without them.

    Raises:
        WorldError: the world is unusable; names the file, the field and the value.
    """
    config, directory = run.config, run.path / "world"
    if run.committed("world") is not None:
        return store.load(directory)
    if config.world.path is not None:
        count = config.world.profiles * config.world.queries_per_profile
        world = build.sample(store.load(config.world.path), count, config.seed)
        store.check(world)
        return world
    return build.synthetic(config.world, config.seed)


def ask_queries(run: Run, crew: Crew, watch: Observer, draft: World) -> World:
    """Have the User-LLM ask every user's queries, once; they are fixed from then on."""
    if run.committed("world") is not None:
        return draft
    world, wall = draft, 0.0
    if not draft.queries:
        total = run.config.world.queries_per_profile * len(draft.profiles)
        with watch.stage("ask queries", queries=total):
            world = _asked(run, crew, watch, draft)
        wall = watch.wall["ask queries"]
    store.check(world)
    store.save(world, run.path / "world")
    run.commit(
        "world",
        [query.id for query in world.queries],
        {"wall_seconds": wall, "queries": len(world.queries)},
    )
    return world


def _asked(run: Run, crew: Crew, watch: Observer, draft: World) -> World:
    config = run.config
    requests = [
        Request(
            user.id,
            prompts.ask(config.user_llm.prompt, user),
            config.world.queries_per_profile,
            seed_of(config.seed, f"ask/{user.id}"),
        )
        for user in draft.profiles
    ]
    size = crew.judges.size
    calls = [crew.judges.call(worker, "ask", requests[worker::size]) for worker in range(size)]
    texts: dict[str, Generated] = {}
    while calls:
        call, item = next_item(calls, config.deadlines.sample, "the next query of the User-LLM")
        if item is DONE:
            calls.remove(call)
        else:
            texts[item.request_id] = item
            watch.advance("queries", len(item.completions), 0)
    splits = build.split(draft.profiles, config.world.test_share, config.seed)
    queries = []
    for user in draft.profiles:
        for place, completion in enumerate(texts[user.id].completions):
            asked = build.query_from_text(user, place, completion.text, splits[user.id])
            if asked is not None and completion.finished:
                queries.append(asked)
    if not queries:
        raise WorldError("the User-LLM asked no usable query; check user_llm.path and user_llm.prompt")
    return replace(draft, queries=tuple(queries))


def sample(
    run: Run, crew: Crew, watch: Observer, world: World, epoch: int, planned: Sequence[Planned]
) -> Sampled:
    """Answers and judgements of the current weights. Epoch T+1 is the test of the last weights."""
    stage = f"epoch-{epoch}/sample"
    directory = run.records(stage)
    if run.committed(stage) is not None:
        return read_sampled(run, stage, planned)
    version = crew.version.name
    total = sum(item.n for item in planned)
    with watch.stage(f"epoch {epoch}: sample", answers=total, judgements=0):
        sampled = sample_answers(run.config, world, crew, watch, planned, version)
    run.fresh(directory)
    save_records(directory / "auctions.parquet", [item.auction for item in planned], Auction)
    save_records(directory / "answers.parquet", sampled.answers, Answer)
    save_records(directory / "clicks.parquet", sampled.click_records(), Click)
    write_text(directory / "judged.json", json.dumps(sorted(sampled.clicks)))
    report = {
        "weight_version": version,
        "wall_seconds": watch.wall[f"epoch {epoch}: sample"],
        "samples": {phase: sum(1 for _ in sampled.of(phase)) for phase in ("reward", "preference", "test")}
        | {"judgement": len(sampled.clicks)},
        "dropped": {"answer": sampled.dropped["answer"], "judgement": sampled.dropped["judgement"]},
    }
    run.commit(stage, [answer.sample_id for answer in sampled.answers], report)
    watch.metrics(epoch - 1, {f"sample/{key}": value for key, value in report.items()})
    return sampled


def read_sampled(run: Run, stage: str, planned: Sequence[Planned]) -> Sampled:
    """What a committed sampling stage brought in."""
    directory = run.records(stage)
    sampled = Sampled({item.auction.id: item for item in planned})
    sampled.answers = load_records(directory / "answers.parquet", Answer)
    sampled.clicks = {name: {} for name in json.loads((directory / "judged.json").read_text())}
    for click in load_records(directory / "clicks.parquet", Click):
        sampled.clicks[click.sample_id][click.ad_id] = click.clicked
    return sampled


def learn(
    run: Run, crew: Crew, watch: Observer, world: World, epoch: int, sampled: Sampled
) -> list[PreferenceGroup]:
    """Phase 1: update the pCTR model on the clicks. Phase 2: score, then winners and losers."""
    stage = f"epoch-{epoch}/learn"
    directory, state = run.records(stage), run.path / "reward" / f"epoch-{epoch}"
    if run.committed(stage) is not None:
        return _read_groups(run, stage, sampled)
    with watch.stage(f"epoch {epoch}: learn"):
        if epoch > 1:
            crew.ask_reward("load", run.path / "reward" / f"epoch-{epoch - 1}")
        train_rows, held_out = click_rows(run, world, sampled)
        last = run.config.irpo.reward_epochs
        fitted = crew.ask_reward("update", train_rows) if last is None or epoch <= last else {}
        held = crew.ask_reward("evaluate", held_out)
        tested = crew.ask_reward("evaluate", rows_of(world, sampled, "test"))
        judged = run.config.irpo.reward == "judge"
        rates = judged_rates(run, sampled) if judged else predicted_rates(run, crew, world, sampled)
        rewards = score(run, sampled, rates)
        groups = _groups(run, sampled, rewards)
        state.parent.mkdir(exist_ok=True)
        crew.ask_reward("save", state)
    run.fresh(directory)
    save_records(directory / "rewards.parquet", list(rewards.values()), Reward)
    _save_groups(run, stage, groups)
    report = {
        "wall_seconds": watch.wall[f"epoch {epoch}: learn"],
        "fit": fitted,
        "held_out": held,
        "pctr": tested,
        "groups": len(groups),
        "pairs": sum(len(one.losers) for one in groups),
        "mean_reward": sum(one.total for one in rewards.values()) / max(1, len(rewards)),
    }
    run.commit(stage, [name for one in groups for name in _members(one)], report)
    watch.metrics(epoch, {f"learn/{key}": value for key, value in report.items()})
    return groups


def _groups(run: Run, sampled: Sampled, rewards: dict[str, Reward]) -> list[PreferenceGroup]:
    by_auction: dict[str, list[Answer]] = {}
    for _, answer in sampled.of("preference"):
        if answer.sample_id in rewards:
            by_auction.setdefault(answer.auction_id, []).append(answer)
    found = [
        group(answers, [rewards[answer.sample_id].total for answer in answers], run.config.irpo.delta)
        for answers in by_auction.values()
    ]
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
    write_text(run.records(stage) / "groups.json", json.dumps(flat))


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
        for one in json.loads((run.records(stage) / "groups.json").read_text())
    ]


def align(
    run: Run,
    crew: Crew,
    watch: Observer,
    epoch: int,
    current: WeightVersion,
    groups: Sequence[PreferenceGroup],
    sampled: Sampled,
) -> tuple[WeightVersion, Probe]:
    """Phase 3: DPO from the current weights, which are the reference too.

    Raises:
        RunError: there is no preference pair to train on, or no step was taken.
    """
    if not groups:
        raise RunError(
            f"epoch {epoch}: no answer lies more than irpo.delta={run.config.irpo.delta} below its "
            "auction's best, so there is nothing to align on; lower irpo.delta, raise "
            "irpo.preference_answers or the sampling temperature"
        )
    name = f"v{epoch}"
    target = run.weights(name)
    target.parent.mkdir(exist_ok=True)
    with watch.stage(f"epoch {epoch}: align"):
        seed, read = seed_of(run.config.seed, name), _reference_messages(run, sampled, groups)
        job = AlignJob(name, current.path, str(target), tuple(groups), seed, read)
        result = crew.policy.align(job)
    if result.steps == 0:
        raise RunError(f"epoch {epoch}: DPO took no step on {len(groups)} groups; lower dpo.batch_groups")
    report = {
        "weight_version": name,
        "wall_seconds": watch.wall[f"epoch {epoch}: align"],
        "probe": asdict(result.probe),
        "steps": result.steps,
        "pairs": result.pairs,
        "tokens": result.tokens,
        "losses": result.losses,
        "accuracies": result.accuracies,
        "margins": result.margins,
    }
    run.commit(f"epoch-{epoch}/align", [], report)
    watch.metrics(epoch, {f"align/{key}": value for key, value in report.items() if key != "probe"})
    watch.say(
        f"epoch {epoch}: {result.steps} steps on {result.pairs} pairs, "
        f"loss {result.losses[0]:.3f} -> {result.losses[-1]:.3f}"
    )
    return WeightVersion(name, epoch, str(target), current.name), result.probe


def _reference_messages(
    run: Run, sampled: Sampled, groups: Sequence[PreferenceGroup]
) -> tuple[prompts.Messages, ...]:
    """The groups' prompts with their bids hidden, where the reference is not to read them."""
    if run.config.dpo.reference == "policy":
        return ()
    planned = [sampled.plan[one.auction_id] for one in groups]
    form = run.config.ad_llm.prompt
    return tuple(
        prompts.answer(form, one.query, one.profile, one.ads, [None] * len(one.ads)) for one in planned
    )


def conclude(
    run: Run, crew: Crew, watch: Observer, world: World, sampled: Sequence[Sampled]
) -> dict[str, Any]:
    """The table of every weight version on the test split; writes `results.json`.

    The last version's clicks are predicted by the last pCTR model, which never saw that policy.
    """
    if run.committed("conclude") is None:
        crew.ask_reward("load", run.path / "reward" / f"epoch-{run.config.irpo.epochs}")
        last = crew.ask_reward("evaluate", rows_of(world, sampled[-1], "test"))
        run.commit("conclude", [], {"wall_seconds": 0.0, "pctr": last})
    epochs = table(run, world, sampled)
    for row in epochs:
        watch.metrics(row["epoch"], {f"test/{key}": value for key, value in row.items()})
    results = {
        "name": run.config.name,
        "epochs": epochs,
        "wall_seconds": {stage: report["wall_seconds"] for stage, report in run.commits.items()},
        "peak_memory_bytes": watch.peak_memory_bytes,
        "dropped": _added(run, "dropped"),
        "samples": _added(run, "samples"),
        "versions": package_versions(),
        "examples": examples(world, sampled[0], sampled[-1]),
    }
    write_json(run.path / "results.json", results)
    return results


def table(run: Run, world: World, sampled: Sequence[Sampled]) -> list[dict[str, Any]]:
    """One row per weight version, the base model first, from the records of a finished run."""
    rows = []
    for epoch, tested in enumerate(sampled):
        learned = run.commits.get(f"epoch-{epoch + 1}/learn") or run.commits["conclude"]
        version = run.commits[f"epoch-{epoch + 1}/sample"]["weight_version"]
        row = {"epoch": epoch, "weight_version": version, "pctr": learned["pctr"]}
        rows.append(row | tested_row(run, world, tested))
    return rows


def tested_row(run: Run, world: World, sampled: Sampled) -> dict[str, Any]:
    """The table row of the weights that made ``sampled``, from its judged test answers."""
    settings = run.config.evaluation.bootstrap, run.config.seed
    return version_row([tested(run, world, sampled)], *settings)


def version_row(seeds: Sequence[Mapping[str, Array]], resamples: int, seed: int) -> dict[str, Any]:
    """The row of one weight version from what `tested` found in each training seed."""
    row = figures(seeds, resamples, seed)
    return row | {name: row[name]["mean"] for name in ("ads_per_answer", "format_error_rate", "click_rate")}


def tested(run: Run, world: World, sampled: Sampled) -> dict[str, Array]:
    """`per_query` figures of the judged test answers."""
    answers = []
    catalogue = world.ad_ids
    for planned, answer, clicked in sampled.judged("test"):
        parsed = parse(answer.text, planned.ads, catalogue)
        chances = clicks.click_probabilities(
            planned.query, planned.profile, answer.text, parsed.placements, world.ad_by_id
        )
        answers.append(Outcome(planned.query.id, parsed, planned.bids, planned.bids, clicked, chances))
    return per_query(answers, run.config.penalty)


def examples(world: World, before: Sampled, after: Sampled, count: int = 3) -> list[dict[str, Any]]:
    """The first answers to the same test auctions under the first and the last weights."""
    last = {answer.sample_id: answer.text for _, answer in after.of("test")}
    shown = []
    for planned, answer in before.of("test"):
        if answer.draw == 0 and answer.sample_id in last:
            bids = {f"{world.ad_by_id[ad].title} [Ad-{ad}]": bid for ad, bid in planned.bids.items()}
            shown.append(
                {
                    "query": planned.query.text,
                    "profile": prompts.persona(planned.profile),
                    "bids": bids,
                    "before": answer.text,
                    "after": last[answer.sample_id],
                }
            )
    return shown[:: max(1, len(shown) // count)][:count]


def _added(run: Run, key: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for report in run.commits.values():
        for name, value in report.get(key, {}).items():
            total[name] = total.get(name, 0) + value
    return total
