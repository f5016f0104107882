"""The reward model: rows, encodings, metrics by hand, learning, determinism, resume."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raylla import config
from raylla.actors.reward import RewardWorker
from raylla.auction import markup, parse
from raylla.errors import ConfigError, RunError
from raylla.records import Ad, Profile, Query
from raylla.reward.calibration import auc, calibration_error, log_loss, reliability
from raylla.reward.encoder import Encoder
from raylla.reward.features import Moments
from raylla.reward.intervals import GROUP
from raylla.reward.rows import ClickRow, click_rows
from raylla.reward.trainer import RewardTrainer
from raylla.world import World, build, clicks
from raylla.world.synthetic import grammar

SETTINGS = config.Pctr()
Make = Callable[..., RewardTrainer]


def rates(trainer: RewardTrainer, asked: list[ClickRow]) -> list[float]:
    """Predicted click rates, without their intervals."""
    return [one.mean for one in trainer.predict_intervals(asked)]


@pytest.fixture(scope="module")
def world() -> World:
    return build.synthetic(config.World(profiles=40), 0)


@pytest.fixture(scope="module")
def judged(world: World) -> list[ClickRow]:
    """About 1200 impressions with clicks drawn from the click model."""
    rng = random.Random(0)
    found: list[ClickRow] = []
    for draw in range(12):
        for user in world.profiles:
            query = replace(grammar.query(random.Random(f"{user.id}/{draw % 3}"), user), id=f"{user.id}-0")
            ads = build.candidates(world, query, 6, 0)
            text = grammar.answer_text(
                rng, query, ads, taste=1.0, blunt=0.5, errors=0.05, counts=(0, 40, 30, 20, 10)
            )
            placements = parse(text, ads).placements
            p = clicks.click_probabilities(query, user, text, placements, world.ad_by_id)
            drawn = {ad: rng.random() < rate for ad, rate in p.items()}
            found += click_rows(f"{query.id}/{draw}", query, user, text, placements, world.ad_by_id, drawn)
    return found


@pytest.fixture(scope="module")
def make(tiny_model: Path) -> Make:
    def trainer(seed: int = 0, **changes: object) -> RewardTrainer:
        return RewardTrainer(str(tiny_model), SETTINGS.model_copy(update=changes), seed)

    return trainer


def test_reliability_by_hand() -> None:
    found = reliability([0.9, 0.1, 0.2, 0.8], [1, 0, 1, 1], bins=2)
    assert found == [(pytest.approx(0.15), 0.5, 2), (pytest.approx(0.85), 1.0, 2)]
    assert calibration_error([0.9, 0.1, 0.2, 0.8], [1, 0, 1, 1], bins=2) == pytest.approx(0.25)


def test_auc_by_hand() -> None:
    assert auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == pytest.approx(0.75)
    assert auc([0.5, 0.5, 0.5], [0, 1, 1]) == pytest.approx(0.5)
    assert auc([0.2, 0.5, 0.5, 0.9], [0, 0, 1, 1]) == pytest.approx(3.5 / 4)
    assert auc([0.9, 0.1], [0, 1]) == 0
    assert math.isnan(auc([0.1, 0.2], [1, 1]))
    assert math.isnan(auc([], []))


def test_auc_agrees_with_counting_pairs() -> None:
    rng = random.Random(0)
    p = [rng.randrange(10) / 10 for _ in range(60)]
    y = [rng.random() < 0.4 for _ in p]
    pairs = [
        (a > b) + (a == b) / 2
        for a, i in zip(p, y, strict=True)
        if i
        for b, j in zip(p, y, strict=True)
        if not j
    ]
    assert auc(p, y) == pytest.approx(sum(pairs) / len(pairs))


def test_log_loss_and_calibration_by_hand() -> None:
    assert log_loss([0.5, 0.5], [0, 1]) == pytest.approx(math.log(2))
    assert log_loss([0.0], [1]) == pytest.approx(-math.log(1e-7))
    assert calibration_error([0.1, 0.1, 0.9, 0.9], [0, 0, 1, 1], bins=2) == pytest.approx(0.1)
    assert calibration_error([0.5] * 4, [0, 1, 0, 1], bins=1) == 0
    assert math.isnan(log_loss([], []))
    assert math.isnan(calibration_error([], []))
    with pytest.raises(ValueError, match="one of each"):
        auc([0.1], [])


def test_rows_tell_rank_and_competition() -> None:
    tea, pot = Ad("1", "Lumo Kettle", "tea", "food"), Ad("2", "Zed Teapot", "tea", "food")
    user, query = Profile("p", "30 nurse Oslo", ()), Query("q", "p", "tea?", "tea", "food", "train")
    text = f"Try {markup(pot)} first. Or {markup(tea)} then."
    placements = parse(text, [tea, pot]).placements
    first, second = click_rows("s", query, user, text, placements, {"1": tea, "2": pot}, {"2": True})
    assert (first.ad_id, first.rank, first.placed, first.earlier_same_category, first.clicked) == (
        "2",
        0,
        2,
        0,
        True,
    )
    assert (second.rank, second.earlier_same_category, second.clicked) == (1, 1, None)
    assert second.sentence == f"Or {markup(tea)} then."


def test_encodings_do_not_depend_on_company(tiny_model: Path) -> None:
    encoder, other = Encoder(str(tiny_model)), Encoder(str(tiny_model), batch_tokens=1, capacity=2)
    texts = ["tea?", "where can I find a good kettle in Oslo?", "", "tea?"]
    together = encoder.encode(texts)
    assert together.shape == (4, encoder.dim)
    assert together.dtype == np.float32
    assert not together[2].any()
    np.testing.assert_array_equal(together[0], together[3])
    for row, text in enumerate(texts):
        np.testing.assert_allclose(other.encode([text])[0], together[row], atol=1e-5)


def test_threads_encode_beside_each_other(tiny_model: Path) -> None:
    encoder = Encoder(str(tiny_model), capacity=3)
    texts = [f"which kettle for {count} cups?" for count in range(8)]
    alone = Encoder(str(tiny_model)).encode(texts)
    with ThreadPoolExecutor(4) as pool:
        asked = [random.Random(draw).sample(range(len(texts)), 4) for draw in range(40)]
        found = pool.map(lambda places: encoder.encode([texts[place] for place in places]), asked)
        for places, vectors in zip(asked, found, strict=True):
            np.testing.assert_allclose(vectors, alone[places], atol=1e-5)


def test_a_span_is_read_in_its_context(tiny_model: Path) -> None:
    encoder = Encoder(str(tiny_model))
    text = "Start with tea. Then take coffee."
    start = text.index("Then")
    inside, alone = encoder.encode_spans([(text, start, len(text))])[0], encoder.encode([text[start:]])[0]
    assert not np.allclose(inside, alone)
    np.testing.assert_allclose(
        encoder.encode_spans([(text, 0, len(text)), (text, 99, 100)]), encoder.encode([text, text])
    )


def test_an_unusable_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pctr\.encoder"):
        RewardTrainer(str(tmp_path / "nowhere"), SETTINGS, 0)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"pctr\.encoder"):
        Encoder(str(tmp_path))


def test_running_moments_equal_those_of_all_rows() -> None:
    data = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    moments = Moments.empty(4)
    for part in np.split(data, [10, 17]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, data.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.scale(data), (data - data.mean(0)) / data.std(0), atol=1e-4)


def test_it_learns_to_rank_and_stays_calibrated(make: Make, judged: list[ClickRow]) -> None:
    learn, held_out = judged[: len(judged) * 3 // 4], judged[len(judged) * 3 // 4 :]
    trainer = make()
    told = trainer.update(learn)
    assert told["rows"] == len(learn)
    assert told["last_loss"] < told["first_loss"]
    found = trainer.evaluate(held_out)
    assert found["rows"] == len(held_out)
    assert found["auc"] > 0.7
    assert found["calibration_error"] < 0.15
    assert 0 < found["calibration_floor"] < found["calibration_floor_high"] < 0.15


def test_intervals_cover_clicks_of_queries_it_never_saw(make: Make, judged: list[ClickRow]) -> None:
    learn, held_out = judged[: len(judged) * 3 // 4], judged[len(judged) * 3 // 4 :]
    trainer = make()
    assert trainer.predict_intervals(learn[:1])[0].high == 1
    told = trainer.update(learn)
    assert math.isfinite(told["interval_quantile"])
    found = trainer.predict_intervals(held_out)
    assert all(0 <= one.low <= one.mean <= one.high <= 1 for one in found)
    report = trainer.evaluate(held_out)
    assert report["interval_groups"] == len(held_out) // GROUP
    assert report["coverage"] >= 0.6
    assert 0.02 < report["interval_width"] < 0.6


def test_each_member_leaves_its_own_queries_out(make: Make, judged: list[ClickRow]) -> None:
    trainer = make(passes=1)
    folds = trainer._folds(judged)
    counts = np.bincount(folds, minlength=SETTINGS.members)
    assert counts.min() > 0.1 * len(judged), counts
    by_query: dict[str, set[int]] = {}
    for row, fold in zip(judged, folds.tolist(), strict=True):
        by_query.setdefault(row.profile_id + row.query_text, set()).add(fold)
    assert all(len(found) == 1 for found in by_query.values())
    left_out = [row for row, fold in zip(judged, folds, strict=True) if fold == 2]
    before = [network.state_dict()["mlp.1.weight"].clone() for network in trainer._members]
    trainer.update(left_out)
    moved = [
        not np.array_equal(old, network.state_dict()["mlp.1.weight"])
        for old, network in zip(before, trainer._members, strict=True)
    ]
    assert moved == [True, True, False, True, True]


def test_same_seed_same_predictions(make: Make, judged: list[ClickRow]) -> None:
    few = judged[:200]
    runs = []
    for seed in (0, 0, 1):
        trainer = make(seed)
        trainer.update(few)
        trainer.update(few)
        runs.append(rates(trainer, few))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_save_and_load_go_on_alike(make: Make, judged: list[ClickRow], tmp_path: Path) -> None:
    first, later = judged[:200], judged[200:400]
    trainer, other = make(), make(seed=0)
    trainer.update(first)
    trainer.save(tmp_path / "pctr")
    trainer.save(tmp_path / "pctr")
    assert [entry.name for entry in tmp_path.iterdir()] == ["pctr"]
    other.load(tmp_path / "pctr")
    # The frozen encoder is no part of what is saved: a text's last bits depend on its company in a batch.
    other.encoder = trainer.encoder
    assert other.predict_intervals(later) == trainer.predict_intervals(later)
    trainer.update(later)
    other.update(later)
    assert other.predict_intervals(later) == trainer.predict_intervals(later)


def test_a_worker_reads_the_models_of_other_settings_too(
    make: Make, judged: list[ClickRow], tiny_model: Path, tmp_path: Path
) -> None:
    blind = SETTINGS.model_copy(update={"features": ()})
    trainers = {"own": make(), "variant": make(features=())}
    for name, trainer in trainers.items():
        trainer.update(judged[:100])
        trainer.save(tmp_path / name)
    worker = RewardWorker(str(tiny_model), SETTINGS, 0)
    for name, settings in (("variant", blind), ("own", SETTINGS), ("variant", blind)):
        worker.load(str(tmp_path / name), settings)
        expected = rates(trainers[name], judged[100:150])
        found = [one.mean for one in worker.predict_intervals(judged[100:150])]
        assert found == pytest.approx(expected, abs=1e-6)


def test_wrong_checkpoints_are_refused(make: Make, judged: list[ClickRow], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no whole reward model"):
        make().load(tmp_path)
    paper = make(features=("answer",))
    paper.update(judged[:50])
    paper.save(tmp_path / "pctr")
    with pytest.raises(RunError, match="texts="):
        make().load(tmp_path / "pctr")
    with pytest.raises(RunError, match="members="):
        make(features=("answer",), members=3).load(tmp_path / "pctr")
    (tmp_path / "pctr" / "pctr.safetensors").write_bytes(b"cut")
    with pytest.raises(RunError, match="no whole reward model"):
        make(features=("answer",)).load(tmp_path / "pctr")


def test_strangers_share_one_embedding(make: Make, judged: list[ClickRow]) -> None:
    trainer = make()
    trainer.update(judged[:200])
    row = judged[0]
    one, two = (replace(row, profile_id=id, ad_id=id) for id in ("new", "newer"))
    assert rates(trainer, [one]) == rates(trainer, [two])
    p = rates(trainer, [one, row])
    assert all(0 <= value <= 1 for value in p)
    reworded = replace(one, ad_text="shoes Zed Boot", ad_category="shoes")
    assert rates(trainer, [one]) != rates(trainer, [reworded])


def test_unjudged_rows_are_not_learned_from(make: Make, judged: list[ClickRow]) -> None:
    trainer = make()
    with pytest.raises(ValueError, match="clicked=None"):
        trainer.update([replace(judged[0], clicked=None)])
    with pytest.raises(ValueError, match="no judged rows"):
        trainer.update([])
    assert rates(trainer, []) == []
    assert math.isnan(trainer.evaluate([])["auc"])
