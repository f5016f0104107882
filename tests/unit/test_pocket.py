"""What pocket models start from and learn from: weights that copy, ads that can only be copied."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from raylla.auction import markup, parse
from raylla.models import resolve
from raylla.pocket import build, initial, tokenizer
from raylla.world import prompts
from raylla.world.synthetic import grammar, lexicon, names


def fresh(**changes: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    settings = Qwen3Config(
        vocab_size=400,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **build.MODEL | changes,
    )
    return Qwen3ForCausalLM(settings).eval()


@torch.no_grad()
def repeated_log_likelihood(model: Qwen3ForCausalLM) -> float:
    """Mean log-probability per token of the second half of 40 random tokens said twice."""
    said = torch.randint(0, 400, (16, 40), generator=torch.Generator().manual_seed(1))
    logits = model(torch.cat([said, said], 1)).logits[:, 39:-1].log_softmax(-1)
    return float(logits.gather(2, said[:, :, None])[:, 1:].mean())


def test_initial_weights_copy() -> None:
    plain = repeated_log_likelihood(fresh())
    model = fresh()
    initial.copying(model, 0)
    copying = repeated_log_likelihood(model)
    assert plain < -5
    assert copying > plain + 1


def test_initial_weights_are_those_of_their_seed() -> None:
    first, again, other = (fresh() for _ in range(3))
    for model, seed in ((first, 5), (again, 5), (other, 6)):
        initial.copying(model, seed)
    weight = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 1}, {"num_attention_heads": 2}, {"num_key_value_heads": 2}]
)
def test_no_room_for_copying_heads(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="head"):
        initial.copying(fresh(**changes), 0)


def embedded(model: Qwen3ForCausalLM, rows: range) -> torch.Tensor:
    return model.model.embed_tokens.weight.detach()[rows.start : rows.stop].double()


def test_embeddings_of_bids_are_smooth_and_stay_so() -> None:
    rows = range(300, 400)
    model, bids = fresh(), initial.Bids(rows)
    weight = model.model.embed_tokens.weight
    others = weight.detach()[:300].clone()
    bids.start(weight, 0)
    started = embedded(model, rows)
    steps, span = started.diff(dim=0).norm(dim=1), (started[-1] - started[0]).norm()
    assert steps.max() < 0.1 * span
    with torch.no_grad():
        weight[rows.start : rows.stop] += 0.1 * torch.randn(
            100, 128, generator=torch.Generator().manual_seed(1)
        )
    assert embedded(model, rows).diff(dim=0).norm(dim=1).mean() > 10 * steps.mean()
    bids.keep(weight)
    kept = embedded(model, rows)
    assert kept.diff(dim=0).norm(dim=1).max() < 0.2 * span
    assert torch.equal(weight.detach()[:300], others)
    bids.keep(weight)
    torch.testing.assert_close(embedded(model, rows), kept, atol=1e-5, rtol=0)


def test_every_bid_is_a_token() -> None:
    words = tokenizer.train_tokenizer(
        (grammar.copy_sample(random.Random(n)).completion for n in range(50)), 512
    )
    assert len(words) == 512
    ids = words.convert_tokens_to_ids(list(tokenizer.BIDS))
    assert ids == list(range(ids[0], ids[0] + 101))
    said = [prompts.compact_bid(bid) for bid in (0, 7.4, 99.5, 100, 250, None)]
    assert said == ["\u00a40", "\u00a47", "\u00a4100", "\u00a4100", "\u00a4100", "\u00a4?"]
    pieces = words.convert_ids_to_tokens(words(f"tea {said[3]} 21 @A@[Ad-1000]").input_ids)
    assert pieces.count(said[3]) == 1


def test_listings_can_be_told_apart_by_any_part() -> None:
    rng = random.Random(3)
    for _ in range(50):
        ads = grammar.ads(rng, rng.choice(lexicon.categories()), 6)
        words = Counter(word for ad in ads for word in ad.title.split()[:2])
        assert set(words.values()) == {1}
        assert len({ad.id[:2] for ad in ads}) == len({ad.id[2:] for ad in ads}) == 6


def test_ids_of_a_large_catalogue_are_distinct() -> None:
    ids = names.ad_ids(random.Random(0), 2000)
    assert len(set(ids)) == 2000
    assert {len(number) for number in ids} == {4}


def test_unseen_brands_are_never_drawn_in_training() -> None:
    rng = random.Random(0)
    known, unseen = set(names.brands(rng, 4000)), set(names.brands(rng, 400, known=False))
    assert len(known) == 4000
    assert len(unseen) == 400
    assert not known & unseen


def test_wild_listings_can_be_placed() -> None:
    rng = random.Random(0)
    for _ in range(200):
        ads = grammar.wild_ads(rng, 6)
        assert parse(" ".join(map(markup, ads)), ads).ad_ids == tuple(ad.id for ad in ads)


@pytest.mark.parametrize("errors", [0.0, 0.3])
def test_answers_break_the_format_as_often_as_asked(errors: float) -> None:
    rng = random.Random(0)
    attempts = broken = 0
    for _ in range(600):
        user = grammar.profile(rng)
        about = grammar.query(rng, user)
        ads = grammar.ads(rng, about.category, 6)
        found = parse(grammar.answer_text(rng, about, ads, errors=errors), ads)
        attempts += found.attempts
        broken += len(found.violations)
    assert broken / attempts == pytest.approx(errors, abs=0.04)


def test_top_names_the_highest_bid() -> None:
    rng = random.Random(0)
    for _ in range(100):
        sample = grammar.copy_sample(rng, kinds=(0, 1, 0))
        listing = [line for line in sample.messages[0]["content"].splitlines() if "@[Ad-" in line]
        bids = [re.search(r" \u00a4(\S+) \d\d @", line)[1] for line in listing]  # type: ignore[index]
        named = [bid for bid, line in zip(bids, listing, strict=True) if line.endswith(sample.completion)]
        assert len(named) == 1
        if "?" not in bids:
            assert int(named[0]) == max(map(int, bids))


def test_batches_of_a_pool_are_of_like_lengths() -> None:
    stage = build.STAGES[-2]
    words = PreTrainedTokenizerFast.from_pretrained(resolve("pocket:ad-llm", "test"))
    pool = build._pool(stage, words, random.Random(0))
    assert [len(batch) for batch in pool] == [stage.batch] * build.POOL
    spans = sorted((min(sizes), max(sizes)) for sizes in ([len(p) + len(a) for p, a, _ in b] for b in pool))
    assert all(high <= low for (_, high), (low, _) in pairwise(spans))
