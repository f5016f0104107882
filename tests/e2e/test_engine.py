"""The real engine on a tiny model: draws, seeds, ends, refusals, and weights there and back."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Qwen3ForCausalLM

from raylla.actors import Pool, RolloutWorker, WeightStore, next_item, read_weights, roll_out
from raylla.config import Actors, Sampling
from raylla.config import Engine as Settings
from raylla.engines import Aggregate, Generated, Given, Probe, Request, open_engine
from raylla.engines.chat import prompt_ids
from raylla.errors import ConfigError, WeightError
from raylla.models import local
from raylla.records import WeightVersion
from raylla.world.synthetic import grammar

pytestmark = pytest.mark.e2e

SAMPLING = Sampling(max_tokens=40)
GREEDY = Sampling(temperature=0, max_tokens=24)
SETTINGS = Settings(max_model_len=512, kv_cache_mib=4, probe_tolerance=1e-3)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Any:
    return open_engine(str(tiny_model), SETTINGS, 0)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def retrained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights in bfloat16, as a trainer would hand it over."""
    model = Qwen3ForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    path = tmp_path_factory.mktemp("retrained") / "v1"
    model.to(torch.bfloat16).save_pretrained(path)
    return path


def requests(count: int, n: int) -> list[Request]:
    rng = random.Random(3)
    found = []
    for index in range(count):
        content = grammar.answer_sample(rng).messages[0]["content"]
        found.append(Request(f"q{index}", [{"role": "user", "content": content}], n, 1000 * index))
    return found


def run(engine: Any, asked: list[Request], sampling: Sampling = SAMPLING) -> dict[str, Generated]:
    return {found.request_id: found for found in engine.generate(asked, sampling)}


def greedy(model: Path, prompt: tuple[int, ...]) -> list[int]:
    """What Hugging Face generates after ``prompt``."""
    reference = Qwen3ForCausalLM.from_pretrained(model, dtype=torch.float32)
    out = reference.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=GREEDY.max_tokens)
    found: list[int] = out[0, len(prompt) :].tolist()
    return found


def probe(model: Path, prompt: Sequence[int], answer: Sequence[int]) -> Probe:
    """The log-probabilities that Hugging Face gives ``answer``."""
    reference = Qwen3ForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logprobs = reference(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    told = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
    return Probe(tuple(prompt), tuple(answer), tuple(told))


def test_every_draw_comes_in_its_place(engine: Any, tokenizer: Any) -> None:
    asked = requests(6, 4)
    found = run(engine, asked)
    assert sorted(found) == sorted(request.id for request in asked)
    for request in asked:
        answer = found[request.id]
        prompt = tokenizer.apply_chat_template(
            request.messages, add_generation_prompt=True, return_dict=False
        )
        assert answer.prompt_token_ids == tuple(prompt)
        assert len({draw.token_ids for draw in answer.completions}) == request.n
        for index, draw in enumerate(answer.completions):
            single = Request("single", request.messages, 1, request.seed + index)
            if request.id in ("q0", "q5"):
                assert run(engine, [single])["single"].completions == (draw,)


def test_the_same_request_gives_the_same_texts_in_any_company(engine: Any) -> None:
    asked = requests(12, 3)
    together = run(engine, asked)
    assert run(engine, asked[::-1]) == together
    assert run(engine, asked[3:9:2])["q5"] == together["q5"]
    assert run(engine, [asked[7]]) == {"q7": together["q7"]}


def test_a_bidder_alone_writes_what_its_model_does(engine: Any) -> None:
    asked = requests(8, 1)
    plain = run(engine, asked, GREEDY)
    bids = (0.0, 7.0)
    joint = [
        Aggregate(one.id, (asked[0].messages, one.messages), bids, rule, 2, 5)
        for one, rule in zip(asked, ["linear", "log-linear"] * 4, strict=True)
    ]
    told = {one.id: one for one in engine.aggregate(joint, GREEDY)}  # more than the cache holds at once
    for one in asked:
        (answer,) = plain[one.id].completions
        for text in told[one.id].texts:
            assert (text.text, text.tokens) == (answer.text, len(answer.token_ids))
            assert text.finished == answer.finished
            assert all((opened.bidder, opened.least) == (1, 0.0) for opened in text.openings)
        assert told[one.id].prompt_tokens == (0, len(plain[one.id].prompt_token_ids))


def test_models_together_follow_their_aggregate(engine: Any, tiny_model: Path) -> None:
    first, second = requests(2, 1)
    bids = (3.0, 1.0)
    prompts = [list(run(engine, [one], GREEDY)[one.id].prompt_token_ids) for one in (first, second)]
    asked = Aggregate("a", (first.messages, second.messages), bids, "log-linear", 1, 0)
    (told,) = engine.aggregate([asked], Sampling(temperature=0, max_tokens=1))
    reference = Qwen3ForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        logs = [reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in prompts]
    both = set(logs[0].topk(20).indices.tolist()) | set(logs[1].topk(20).indices.tolist())
    floored = [torch.maximum(one, one.topk(20).values[-1]) for one in logs]
    score = 3 * floored[0] + floored[1]
    best = max(both, key=lambda id: float(score[id]))
    assert told.texts[0].text == engine._tokenizer.decode([best], skip_special_tokens=True)
    mixed = replace(asked, rule="linear", n=16)
    (drawn,) = engine.aggregate([mixed], SAMPLING)
    assert len({one.text for one in drawn.texts}) > 8
    (again,) = engine.aggregate([replace(mixed, n=4)], SAMPLING)
    assert again.texts == drawn.texts[:4]
    long = replace(asked, prompts=([{"role": "user", "content": "tea " * 600}], second.messages))
    (refused,) = engine.aggregate([long], SAMPLING)
    assert "raise the" in str(refused.error)
    assert not refused.texts


def test_choices_have_the_models_own_log_probabilities(
    engine: Any, tokenizer: Any, tiny_model: Path
) -> None:
    plain = requests(4, 2)
    asked = [
        replace(one, id=f"c{at}", n=1, choices=("1", "0", "t")[: 2 + at % 2])
        for at, one in enumerate(plain)
    ]
    # Among ordinary requests, and under a sampling that has nothing to say about it.
    found = run(engine, [*asked, *plain], Sampling(temperature=2.0, top_k=1, max_tokens=40))
    assert {name: len(one.completions) for name, one in found.items() if name[0] == "q"} == dict.fromkeys(
        ("q0", "q1", "q2", "q3"), 2
    )
    reference = Qwen3ForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for one in asked:
        answer = found[one.id]
        with torch.no_grad():
            told = reference(torch.tensor([list(answer.prompt_token_ids)])).logits[0, -1].log_softmax(-1)
        ids = [tokenizer.encode(choice)[0] for choice in one.choices]
        assert answer.completions[0].choices == pytest.approx([told[id].item() for id in ids], abs=1e-3)
        assert len(answer.completions[0].token_ids) == 1
    assert found["q0"].completions[0].choices == ()
    # A prompt needs room for one token, not for an answer.
    room = SETTINGS.max_model_len - len(found["c0"].prompt_token_ids)
    assert run(engine, [asked[0]], Sampling(max_tokens=room + 1))["c0"].error is None
    with pytest.raises(ConfigError, match=r"'a long word' is \d+ tokens"):
        run(engine, [replace(asked[0], choices=("1", "a long word"))])


def test_long_seeded_prompts_never_have_their_prefill_cut(engine: Any) -> None:
    # Several times the token budget of a step, the sequences of a batch and the tokens that the
    # cache holds: the engine queues and preempts, and must still say the same.
    asked = requests(90, 3)
    together = run(engine, asked)
    assert sum(len(found.prompt_token_ids) for found in together.values()) > 2 * 8192
    assert all(found.error is None and len(found.completions) == 3 for found in together.values())
    assert run(engine, asked[50:53]) == {name: together[name] for name in ("q50", "q51", "q52")}


def test_the_end_token_is_kept_in_the_ids_and_out_of_the_text(engine: Any, tokenizer: Any) -> None:
    draws = [draw for found in run(engine, requests(40, 8)).values() for draw in found.completions]
    ended = [draw for draw in draws if draw.finished]
    cut = [draw for draw in draws if not draw.finished]
    assert ended
    assert cut
    for draw in ended:
        assert draw.token_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token not in draw.text
    for draw in cut:
        assert len(draw.token_ids) == SAMPLING.max_tokens
    for draw in draws:
        assert tokenizer.eos_token_id not in draw.token_ids[:-1]
        assert draw.text == tokenizer.decode(draw.token_ids, skip_special_tokens=True)


def test_log_probabilities_are_the_model_s_own_whatever_is_sampled_from(
    engine: Any, tiny_model: Path
) -> None:
    asked = [Request("asked", requests(1, 3)[0].messages, 3, 0, logprobs=True), *requests(1, 3)]
    found = run(engine, asked, Sampling(max_tokens=40, temperature=0.7, top_k=10))
    assert [draw.token_ids for draw in found["asked"].completions] == [
        draw.token_ids for draw in found["q0"].completions
    ]
    assert all(draw.logprob is None for draw in found["q0"].completions)
    for draw in found["asked"].completions:
        expected = sum(probe(tiny_model, found["asked"].prompt_token_ids, draw.token_ids).logprobs)
        assert draw.logprob == pytest.approx(expected, abs=1e-3)


def test_a_prompt_too_long_is_refused_alone(engine: Any, tokenizer: Any) -> None:
    room = SETTINGS.max_model_len - SAMPLING.max_tokens
    # One token each, and two of the template.
    fits, over, far = ([{"role": "user", "content": "}" * length}] for length in (room - 2, room - 1, 9000))
    asked = [Request("far", far, 2, 0), Request("over", over, 2, 0), Request("fits", fits, 2, 0)]
    found = run(engine, asked)
    assert len(found["fits"].prompt_token_ids) == room
    assert found["fits"].error is None
    for name in ("far", "over"):
        assert found[name].completions == ()
        assert "engine.max_model_len=512 less sampling.max_tokens=40" in str(found[name].error)


def test_greedy_draws_are_repeated(engine: Any, tiny_model: Path) -> None:
    found = run(engine, requests(1, 3), GREEDY)["q0"]
    assert [list(draw.token_ids) for draw in found.completions] == 3 * [
        greedy(tiny_model, found.prompt_token_ids)
    ]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, top_k=8, max_tokens=40),
        Sampling(temperature=0.9, top_k=20, top_p=0.8, max_tokens=40),
    ],
)
def test_answers_are_as_likely_as_sampling_made_them(
    engine: Any, tokenizer: Any, tiny_model: Path, sampling: Sampling
) -> None:
    """Prompts by their tokens; against Hugging Face's logits under temperature, top-k and top-p."""
    messages = requests(6, 3)
    prompts = {one.id: tuple(prompt_ids(tokenizer, one.messages)) for one in messages}
    asked = [replace(one, messages=[], prompt_token_ids=prompts[one.id]) for one in messages]
    found = run(engine, asked, sampling)
    assert found == run(engine, messages, sampling)
    draws = [(id, draw) for id, one in found.items() for draw in one.completions]
    given = [
        Given(str(at), [], draw.token_ids, prompt_token_ids=prompts[id], sampling=sampling)
        for at, (id, draw) in enumerate(draws)
    ]
    odd = replace(given[0], id="odd", token_ids=tuple(reversed(given[0].token_ids)))
    scored = {one.id: one for one in engine.score([*given, odd])}
    model = Qwen3ForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for one, (_, draw) in zip(given, draws, strict=True):
        ids = torch.tensor([[*one.prompt_token_ids, *one.token_ids]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(one.prompt_token_ids) - 1 : -1] / sampling.temperature
        best, places = logits.topk(sampling.top_k)
        shares = best.softmax(-1)
        cut = torch.full_like(logits, -torch.inf)
        cut.scatter_(1, places, best.masked_fill(shares.cumsum(-1) - shares >= sampling.top_p, -torch.inf))
        told = cut.log_softmax(-1).gather(1, ids[0, len(one.prompt_token_ids) :, None]).sum()
        assert scored[one.id].logprob == pytest.approx(float(told), abs=2e-3)
        assert (scored[one.id].outside, scored[one.id].tokens) == (0, len(one.token_ids))
        assert scored[one.id].ended == draw.finished
        assert scored[one.id].logprob > (draw.logprob or -math.inf)  # cuts leave more for what is drawn
    assert scored["odd"].outside > 0
    with pytest.raises(ConfigError, match="top_k=0"):
        list(engine.score([replace(odd, sampling=Sampling(temperature=0.7))]))


def test_given_answers_are_as_likely_as_the_model_finds_them(
    engine: Any, tokenizer: Any, tiny_model: Path
) -> None:
    asked = requests(4, 2)
    found = run(engine, asked)
    given = [
        Given(f"{request.id}/{draw}", request.messages, found[request.id].completions[draw].token_ids)
        for request in asked
        for draw in (1, 0)
    ]
    given.append(Given("other", asked[1].messages, given[0].token_ids))
    scored = {one.id: one.logprob for one in engine.score(given)}
    prompts = {request.id: found[request.id].prompt_token_ids for request in asked}
    for one in given:
        prompt = prompts[asked[1].id if one.id == "other" else one.id.split("/")[0]]
        expected = sum(probe(tiny_model, prompt, one.token_ids).logprobs)
        assert scored[one.id] == pytest.approx(expected, abs=2e-3)
    assert scored["other"] != pytest.approx(scored[given[0].id], abs=0.5)
    text = found[asked[0].id].completions[0].text
    ids = tokenizer.encode(text, add_special_tokens=False)
    [said] = engine.score([Given("text", asked[0].messages, text=text)])
    expected = sum(probe(tiny_model, prompts[asked[0].id], ids).logprobs)
    assert (said.logprob, said.tokens) == (pytest.approx(expected, abs=2e-3), len(ids))
    for wrong in ((), (5,) * 600):
        with pytest.raises(ValueError, match="tokens, its prompt"):
            list(engine.score([Given("x", asked[0].messages, wrong)]))


def test_new_weights_are_taken_over_there_and_back(engine: Any, tiny_model: Path, retrained: Path) -> None:
    asked = requests(3, 1)
    texts = {}
    for path in (tiny_model, retrained, tiny_model):
        prompt = run(engine, asked[:1], GREEDY)["q0"].prompt_token_ids
        known = probe(path, prompt, tuple(range(40, 60)))
        assert engine.load(read_weights(path), known) < 1e-4
        for found in run(engine, asked, GREEDY).values():
            assert list(found.completions[0].token_ids) == greedy(path, found.prompt_token_ids)
            texts[path, found.request_id] = found.completions[0].token_ids
    assert texts[tiny_model, "q0"] != texts[retrained, "q0"]


def test_an_adapter_is_taken_over_like_whole_weights(
    engine: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLLA_CACHE", str(tmp_path / "cache"))
    base = Qwen3ForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "v1")
    prompt = run(engine, requests(1, 1), GREEDY)["q0"].prompt_token_ids
    with local(tmp_path / "v1") as merged:
        assert engine.load(read_weights(tmp_path / "v1"), probe(merged, prompt, range(40, 60))) < 1e-4
        found = run(engine, requests(1, 1), GREEDY)["q0"].completions[0].token_ids
        assert list(found) == greedy(merged, prompt) != greedy(tiny_model, prompt)
    assert engine.load(read_weights(tiny_model), probe(tiny_model, prompt, range(40, 60))) < 1e-4


def test_weights_that_are_not_the_trainer_s_are_an_error(
    engine: Any, tiny_model: Path, retrained: Path
) -> None:
    weights = read_weights(tiny_model)
    right, wrong = (
        probe(path, tuple(range(30, 60)), tuple(range(40, 60))) for path in (tiny_model, retrained)
    )
    with pytest.raises(WeightError, match=r"differ by .* more than engine\.probe_tolerance=0\.001"):
        engine.load(weights, wrong)
    for name in ("lm_head.weight", "model.norm.weight"):
        with pytest.raises(WeightError, match=rf"1 weights .* {name} has shape none: it is missing"):
            engine.load({key: array for key, array in weights.items() if key != name}, right)
    with pytest.raises(
        WeightError, match=r"model\.extra has shape \(3,\) and should have none: it is unknown"
    ):
        engine.load({**weights, "model.extra": np.zeros(3, np.float32)}, right)
    with pytest.raises(WeightError, match=r"model\.norm\.weight has shape \(3,\) and should have \(64,\)"):
        engine.load({**weights, "model.norm.weight": np.zeros(3, np.float32)}, right)
    with pytest.raises(WeightError, match="leaves none of its answer"):
        engine.load(weights, Probe(tuple(range(10, 500)) * 2, (7,), (0.0,)))
    assert engine.load(weights, right) < 1e-4


def test_work_under_way_keeps_weights_out_until_it_is_dropped(engine: Any, tiny_model: Path) -> None:
    weights = read_weights(tiny_model)
    answers = engine.generate(requests(60, 4), SAMPLING)
    next(answers)
    with pytest.raises(RuntimeError, match="load was called while"):
        engine.load(weights, None)
    with pytest.raises(RuntimeError, match="generate was called while"):
        run(engine, requests(1, 1))
    answers.close()
    assert engine.load(weights, None) == 0.0
    assert run(engine, requests(1, 2))["q0"].error is None


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_an_engine_in_an_actor_says_what_one_in_this_process_says(
    cluster: None, engine: Any, tiny_model: Path, retrained: Path
) -> None:
    args = (str(tiny_model), SAMPLING, SETTINGS, 0, "v0")
    pool = Pool("rollout", RolloutWorker, args, Actors(cpus=1))
    store = Pool("store", WeightStore, (), Actors(cpus=0))
    pool.start(120)
    store.start(60)
    asked = requests(4, 3)
    engine.load(read_weights(tiny_model), None)
    here = [run(engine, asked)]
    version = WeightVersion("v1", 1, str(retrained))
    known = probe(retrained, tuple(range(30, 60)), tuple(range(40, 60)))
    there = [_ask(pool, asked, "v0")]
    assert roll_out(pool, store, version, known, 60)[0] < 1e-4
    there.append(_ask(pool, asked, "v1"))
    engine.load(read_weights(retrained), known)
    here.append(run(engine, asked))
    assert there == here
    pool.stop()
    store.stop()
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def _ask(pool: Pool, asked: list[Request], version: str) -> dict[str, Generated]:
    call = pool.call(0, "generate", asked, version)
    found = [next_item([call], 60, "an answer")[1] for _ in asked]
    return {answer.request_id: answer for answer in found}
