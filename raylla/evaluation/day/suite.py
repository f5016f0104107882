"""`raylla evaluate --suite day`: advertisers with budgets against every mechanism, over days of 48 periods.

The endpoint's own rules say who may compete; autobidders say what they bid.  Every mechanism meets the same
users, values, budgets and bidders.  The offline optimum is the best mix, with hindsight, of answers that
were seen: of the mechanism's own, and of all that were seen under any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raylla.auction.checks import Array
from raylla.bidding.autobidders import AUTOBIDDERS, Population
from raylla.bidding.hindsight import liquid_welfare, offline_optimum
from raylla.config import Evaluation
from raylla.evaluation import efficiency, history
from raylla.evaluation.backend import EvaluationBackend
from raylla.evaluation.day.accounts import DayAccount, market_row
from raylla.evaluation.day.market import PERIODS, Market, budgets_of, day_market, traffic
from raylla.evaluation.day.play import ClickChances, Played, lone_answers, play
from raylla.evaluation.setup import MAIN, check_runs, engines, with_settings
from raylla.judging import about
from raylla.mechanisms.protocol import Mechanism, named_mechanisms
from raylla.runs.observe import Observer
from raylla.runs.state import Run, package_versions
from raylla.world import store

MIXED = "mixed"


def day_runs(runs: Sequence[Run], settings: Evaluation, watch: Observer) -> dict[str, Any]:
    """Everything that `day.json` holds: every mechanism on the training seeds, under the setting that is
    best on a seed's validation auctions; LLM-Auction alone on the variants.

    Raises:
        RunError: as `setup.check_runs`, or a run has too few test queries, or nobody clicks.
        ConfigError: a mechanism of ``evaluation.mechanisms``, or a model, does not exist or do.
    """
    mechanisms = named_mechanisms(list(dict.fromkeys(settings.mechanisms)))
    check_runs(runs, settings)
    for run in runs:
        day_market(with_settings(run, settings), store.load_world(run.part("world")))
    main = with_settings(runs[0], settings)
    rows: dict[str, dict[str, list[DayAccount]]] = {}
    choices: dict[str, list[dict[str, Any]]] = {}
    with engines(runs, settings, watch) as opened:
        for run in runs:
            backend, own = opened(run), run.config.name == main.name
            days = played_days(backend, mechanisms if own else named_mechanisms([MAIN]), watch)
            for name, (choice, accounts) in days.items():
                name = name if own else f"{name}: {run.config.name}"
                choices.setdefault(name, []).append(choice)
                for kind, account in accounts.items():
                    rows.setdefault(name, {}).setdefault(kind, []).append(account)
    return {
        "name": main.name,
        "suite": "day",
        "clicks": about.sources(main.user_llm)["expected"],
        "tuned_under": about.sources(main.user_llm)["counted"],
        "runs": [history.provenance(run) for run in runs],
        "periods": PERIODS,
        "traffic": traffic().tolist(),
        "settings": settings.day.model_dump(mode="json"),
        "mechanisms": {
            name: {
                "choices": choices[name],
                "markets": {kind: market_row(accounts, main) for kind, accounts in markets.items()},
            }
            for name, markets in rows.items()
        },
        "config": main.model_dump(mode="json"),
        "wall_seconds": dict(watch.wall),
        "versions": package_versions(),
    }


def played_days(
    backend: EvaluationBackend, mechanisms: Sequence[Mechanism], watch: Observer
) -> dict[str, tuple[dict[str, Any], dict[str, DayAccount]]]:
    """By mechanism, the setting that it was held under, and by market what came of its days."""
    config, where = backend.config, backend.run.path.name
    day = config.evaluation.day
    market = day_market(config, backend.world)
    with watch.stage(f"{where}: budgets"):
        rates, answers = lone_answers(backend, named_mechanisms([MAIN])[0], market)
    budgets = budgets_of(market, rates, config)
    seen: ClickChances = dict(answers)
    held: dict[str, tuple[dict[str, Any], dict[str, tuple[Population, Played]]]] = {}
    for mechanism in mechanisms:
        with watch.stage(f"{where}: {mechanism.name}: tune"):
            choice, _ = efficiency.tune_mechanism(backend, mechanism, mechanism.choices(config.irpo.epochs))
        bidders = {kind: population(kind, budgets, day.target, config.seed) for kind in day.markets}
        with watch.stage(f"{where}: {mechanism.name}: {day.days} days"):
            played = play(backend, mechanism, choice, market, list(bidders.values()), budgets)
        both = zip(bidders.values(), played, strict=True)
        held[mechanism.name] = dict(choice), dict(zip(bidders, both, strict=True))
        for days in played:
            seen |= days.answers
    return {
        name: (choice, {kind: _account(market, budgets, seen, *pair) for kind, pair in markets.items()})
        for name, (choice, markets) in held.items()
    }


def population(kind: str, budgets: Array, target: float, seed: int) -> Population:
    """Bidders of one kind, or of all the autobidders in turn, in an order drawn by the seed."""
    rng, count = np.random.default_rng([seed, 1]), len(budgets)
    order = rng.permutation(count)
    kinds = [AUTOBIDDERS[place % len(AUTOBIDDERS)] if kind == MIXED else kind for place in order]
    return Population(kinds, budgets, target, rng)


def _account(
    market: Market, budgets: Array, seen: ClickChances, bidders: Population, played: Played
) -> DayAccount:
    """What was played beside what could have been had."""
    users = market.users.sum(axis=1)
    terms = budgets, bidders.targets
    return DayAccount(
        users,
        budgets,
        bidders.kinds,
        played,
        np.array([liquid_welfare(value.sum(axis=0), *terms).sum() for value in played.value]),
        np.array([_best(played.answers, user, *terms) for user in users]),
        np.array([_best(seen, user, *terms) for user in users]),
    )


def _best(answers: ClickChances, users: Array, budgets: Array, targets: Array) -> float:
    if not answers:
        return 0.0
    question = [query for query, _, _ in answers]
    return offline_optimum(np.array(list(answers.values())), question, users, budgets, targets)
