"""Adapters that share the real engine: each computed as itself in any company, and else refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen3ForCausalLM

from raylla.config import Engine as Settings
from raylla.config import Sampling
from raylla.engines import AdapterRoom, Given, Probe, Request, open_engine, vllm
from raylla.engines.live import LiveVllm
from raylla.errors import WeightError
from raylla.models import local, read_adapter
from raylla.models.packages import digest
from raylla.serving.store import open_store
from raylla.serving.store.importing import list_world
from raylla.world import store as worlds
from tests.e2e.endpoint import POCKET_LORA, adapter_version, pocket, served, standing_run, until_listed

pytestmark = pytest.mark.e2e

SETTINGS = Settings(max_model_len=512, kv_cache_mib=4, probe_tolerance=1e-3, max_num_seqs=16)
ROOM = AdapterRoom(2, 4, ("q_proj", "v_proj", "o_proj", "up_proj"))
GREEDY = Sampling(temperature=0, max_tokens=12)
PROMPT = tuple(range(30, 60))


WIDTHS, LOW = (6, 4), 3


def computed(slots: list[int], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel makes of rows of ``slots``, and row by row what it should."""
    from vllm.lora.layers import LoRAMapping

    from raylla.engines.grouped import GroupedLora

    generator = torch.Generator().manual_seed(len(slots))
    x = torch.randn(len(slots), 5, generator=generator)
    before = torch.randn(len(slots), sum(WIDTHS), generator=generator)
    low = tuple(torch.randn(2, 1, LOW, 5, generator=generator) for _ in WIDTHS)
    high = tuple(torch.randn(2, 1, width, LOW, generator=generator) for width in WIDTHS)
    kernel = GroupedLora(64, max_batches=8, device="cpu")
    ids = tuple(0 if slot < 0 else 10 + slot for slot in slots)
    kernel.update_metadata(LoRAMapping(ids, ids, is_prefill=True), [10, 11], 2, 100)
    after = before.clone()
    kernel.add_lora_linear(after, x, low, high, scale, WIDTHS)
    expected = before.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            change = [b[slot, 0] @ (a[slot, 0] @ x[row]) for a, b in zip(low, high, strict=True)]
            expected[row] += scale * torch.cat(change)
    return after, expected


@pytest.mark.parametrize(
    "slots",
    [[-1, -1], [0, 0, 0], [1], [-1, 1], [0, 0, 1, 1, -1], [1, -1, 0, 1, -1, 0, 1]],
    ids=str,
)
def test_each_row_is_changed_by_its_own_slot(slots: list[int]) -> None:
    for scale in (1.0, 0.5):
        after, expected = computed(slots, scale)
        torch.testing.assert_close(after, expected)


@pytest.fixture(scope="module")
def places(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base under "", and three adapters over it."""
    folder = tmp_path_factory.mktemp("adapters")
    found = {"": tiny_model}
    for seed, name in enumerate(("one", "two", "three")):
        torch.manual_seed(seed)
        base = Qwen3ForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        lora = LoraConfig(r=4, lora_alpha=48, target_modules=list(ROOM.targets), init_lora_weights=False)
        get_peft_model(base, lora).save_pretrained(folder / name)
        found[name] = folder / name
    return found


@pytest.fixture(scope="module")
def reference(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Hugging Face's model of each, adapters merged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLLA_CACHE", str(tmp_path_factory.mktemp("cache")))
        models = {}
        for name, place in places.items():
            with local(place) as whole:
                models[name] = Qwen3ForCausalLM.from_pretrained(whole, dtype=torch.float32)
    return models.__getitem__


def greedy(model: Any) -> list[int]:
    options = {"do_sample": False, "max_new_tokens": GREEDY.max_tokens, "eos_token_id": None}
    found: list[int] = model.generate(torch.tensor([PROMPT]), **options)[0, len(PROMPT) :].tolist()
    return found


def probe(model: Any, answer: Sequence[int] = tuple(range(40, 60))) -> Probe:
    ids = torch.tensor([[*PROMPT, *answer]])
    with torch.no_grad():
        logs = model(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    told = logs.gather(1, ids[0, len(PROMPT) :, None])[:, 0].tolist()
    return Probe(PROMPT, tuple(answer), tuple(told))


def together(engine: LiveVllm, policies: Sequence[str]) -> list[list[int]]:
    """What each policy writes, all of them in one batch; "" is the base."""
    rows: dict[str, list[int]] = {f"r{place}": [] for place in range(len(policies))}
    for name, policy in zip(rows, policies, strict=True):
        engine.submit(name, PROMPT, GREEDY, True, policy)
    running = set(rows)
    while running:
        for step in engine.step():
            rows[step.name] += step.token_ids
            if step.finish:
                running.discard(step.name)
    return list(rows.values())


def neighbour(base: Path, adapter: Path, place: Path) -> tuple[Probe, str]:
    """Write the adapter that a small step makes of another; its probe, and its file's digest."""
    model = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter *= 1.0005
    model.save_pretrained(place)
    return probe(model.merge_and_unload()), digest(place / "adapter_model.safetensors")


def one_for_all(patch: pytest.MonkeyPatch, engine: LiveVllm, name: str) -> None:
    """Have ``engine`` compute every adapter's rows with that of ``name``."""
    inside = cast(Any, engine)._engine
    asked, always = inside.add_request, cast(Any, engine)._sharing.lora(name)

    def add_request(*args: Any, lora_request: Any = None, **more: Any) -> Any:
        return asked(*args, lora_request=lora_request and always, **more)

    patch.setattr(inside, "add_request", add_request)


def test_policies_share_batches_and_come_while_others_write(
    places: dict[str, Path],
    reference: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = LiveVllm(str(places[""]), SETTINGS, 0, ROOM)
    right = {name: greedy(reference(name)) for name in places}
    assert len({tuple(tokens) for tokens in right.values()}) == 4
    room = engine.adapter_bytes()
    engine.submit("long", PROMPT, Sampling(temperature=0, max_tokens=200), True)
    written = [token for _ in range(3) for step in engine.step() for token in step.token_ids]
    assert engine.hold("one", places["one"], probe(reference("one"))) < 1e-4
    assert engine.hold("two", places["two"], None) == 0.0
    assert engine.adapter_bytes() == room > 0  # the slots, and no copies beside them
    running = True
    while running:
        for step in engine.step():
            written += step.token_ids if step.name == "long" else ()
            running = step.finish is None
    assert written[: GREEDY.max_tokens] == right[""]
    assert len(written) == 200
    # The base, the adapter of the first slot and that of the last, in every company and order.
    for company in ([""], ["", "one"], ["", "two"], ["two", ""], ["one", "", "two", "two", "", "one"]):
        assert together(engine, company) == [right[one] for one in company]
    with pytest.raises(WeightError, match="no room for the adapter of three: one, two are held"):
        engine.hold("three", places["three"], None)
    engine.drop("one")
    with pytest.raises(WeightError, match=r"adapter of three: .* more than engine\.probe_tolerance=0\.001"):
        engine.hold("three", places["three"], probe(reference("one")))
    large = tmp_path / "large"
    large.mkdir()
    settings = json.loads((places["three"] / "adapter_config.json").read_text())
    (large / "adapter_config.json").write_text(json.dumps(settings | {"r": 8}))
    with pytest.raises(WeightError, match="its rank is 8, the engine has room for 4"):
        engine.hold("large", large, None)
    (large / "adapter_config.json").write_text(json.dumps(settings))
    (large / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightError, match="adapter of large does not load"):
        engine.hold("large", large, None)
    (large / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": "eight"}))
    with pytest.raises(WeightError, match=r"large/adapter_config\.json and .*: TypeError: unsupported"):
        engine.hold("large", large, None)
    with pytest.raises(ValueError, match="no adapter one is held; there are two"):
        engine.submit("gone", PROMPT, GREEDY, False, "one")
    saved = [digest(places[one] / "adapter_model.safetensors") for one in ("one", "three")]
    known = [replace(probe(reference("three")), digest=one) for one in saved]
    with pytest.raises(WeightError, match=r"another version's than the trainer saved under this name"):
        engine.hold("three", places["three"], known[0])  # though it computes what the probe says
    assert engine.hold("three", places["three"], known[1]) < 1e-4
    company = ["three", "", "two", "", "three"]
    assert together(engine, company) == [right[one] for one in company]
    engine.drop("two")
    near, told = neighbour(places[""], places["three"], tmp_path / "near")
    assert near != probe(reference("three"))
    engine.hold("swapped", places["three"], near)  # within the tolerance, and of the wrong weights
    engine.drop("swapped")
    with pytest.raises(WeightError, match=r"adapter of near: .* another version's than the trainer saved"):
        engine.hold("near", places["three"], replace(near, digest=told))
    with monkeypatch.context() as patch:
        one_for_all(patch, engine, "three")
        with pytest.raises(WeightError, match="of near and three are computed as the same"):
            engine.hold("near", tmp_path / "near", replace(near, digest=told))
    assert engine.hold("near", tmp_path / "near", replace(near, digest=told)) < 1e-4
    assert together(engine, ["three", "", "near"])[:2] == [right["three"], right[""]]


def test_an_engine_that_mixes_adapters_up_takes_none_that_it_would(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own kernel on CPUs computes rows without an adapter with the one in the last slot."""
    from vllm.platforms import current_platform

    made = vllm.adapter_arguments

    def its_own(room: AdapterRoom, settings: Settings) -> dict[str, Any]:
        given = made(room, settings)
        del current_platform.get_punica_wrapper
        return given

    monkeypatch.setattr(vllm, "adapter_arguments", its_own)
    engine = LiveVllm(str(places[""]), SETTINGS, 0, ROOM)
    engine.hold("one", places["one"], None)
    with pytest.raises(WeightError, match="in one batch with the adapter of two, the base is computed"):
        engine.hold("two", places["two"], None)
    assert together(engine, ["one"]) == together(engine, ["one"])


def test_a_version_is_taken_over_as_an_adapter_there_and_back(
    places: dict[str, Path], reference: Callable[[str], Any]
) -> None:
    engine = open_engine(str(places["one"]), SETTINGS, 0, ROOM)  # whose base is loaded, and itself
    asked = Request("q", [], 1, 0, prompt_token_ids=PROMPT)
    for name in ("one", "two", "three", "", "two"):
        if name != "one":
            payload = read_adapter(places[name]) if name else {}
            assert engine.load(payload, probe(reference(name))) < 1e-4
        (found,) = engine.generate([asked], GREEDY)
        assert list(found.completions[0].token_ids) == greedy(reference(name))
        known = probe(reference(name))
        (scored,) = engine.score([Given("g", [], known.token_ids, prompt_token_ids=PROMPT)])
        assert scored.logprob == pytest.approx(sum(known.logprobs), abs=2e-3)
    with pytest.raises(WeightError, match="whole model is handed to an engine"):
        engine.load({"model.norm.weight": torch.zeros(64).numpy()}, None)
    with pytest.raises(WeightError, match=r"more than engine\.probe_tolerance=0\.001"):
        engine.load(read_adapter(places["one"]), probe(reference("two")))
    (found,) = engine.generate([asked], GREEDY)
    assert list(found.completions[0].token_ids) == greedy(reference("two"))


def body(content: str, **raylla: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "raylla": raylla}


def test_an_endpoint_answers_by_all_of_its_policies_at_once(tmp_path: Path) -> None:
    """The real engine: stable, canary and organic in its batches, while versions come and change names."""
    serving = {"database": f"sqlite:///{tmp_path}/raylla.db", "adapters": "shared", "organic": "untouched"}
    lora = POCKET_LORA.model_dump(mode="json")
    config = pocket(serving=serving, lora=lora, world={"profiles": 20}, irpo={"epochs": 3})
    run = standing_run(tmp_path / "run", config)
    for seed, name in enumerate(("v1", "v2")):
        adapter_version(run, name, seed)
    target = {name: {"run": run.place, "version": name} for name in ("v1", "v2")}

    async def asked(client: httpx.AsyncClient, count: int = 12) -> list[tuple[str, str]]:
        """Version and text of ``count`` greedy answers without ads and as many auctions, all at once."""
        organic = {**body("which tea is calm?", ads=False), "temperature": 0}
        auctions = body("which mug keeps tea warm?")
        sent = [client.post("/v1/chat/completions", json=one) for one in [organic, auctions] * count]
        found = [one.json() for one in await asyncio.gather(*sent)]
        return [(one["raylla"]["weight_version"], one["choices"][0]["message"]["content"]) for one in found]

    async def until(client: httpx.AsyncClient, **versions: str | None) -> dict[str, Any]:
        for _ in range(100):
            health: dict[str, Any] = (await client.get("/healthz")).json()
            if health["versions"] == versions or health["problems"]:
                return health
            await asyncio.sleep(0.1)
        raise AssertionError(health)

    async def scenario() -> None:
        async with served(config, run, "v1") as (ingress, client):
            list_world(
                open_store(serving["database"]),
                worlds.load_world(run.path / "world"),
                config.serving,
                config.world.max_bid,
                0,
                datetime.now(UTC),
            )
            await until_listed(client)
            before = await asked(client)
            assert {name for name, _ in before[::2]} == {"v0"}
            assert {name for name, _ in before[1::2]} == {"v1"}
            assert len({text for _, text in before[::2]}) == 1
            wish = {"stable": target["v1"], "canary": target["v2"], "share": 0.5, "since": None}
            under_way = asyncio.ensure_future(asked(client, 30))
            await ingress.reconfigure(wish)
            assert (await until(client, stable="v1", canary="v2"))["problems"] == []
            assert {name for name, _ in (await under_way)[1::2]} <= {"v1", "v2"}
            both = await asked(client, 30)
            assert both[::2] == before[:1] * 30  # whatever else was in the batch
            assert {name for name, _ in both[1::2]} == {"v1", "v2"}
            await ingress.reconfigure(wish | {"stable": target["v2"], "canary": None})
            await until(client, stable="v2", canary=None)
            assert {name for name, _ in (await asked(client))[1::2]} == {"v2"}
            place = Path(run.weights("v1")) / "adapter_model.safetensors"
            place.write_bytes((Path(run.weights("v2")) / place.name).read_bytes())
            await ingress.reconfigure(wish | {"stable": target["v2"], "canary": target["v1"]})
            health = await until(client, stable="v2", canary="v1")
            assert "its SHA-256 differs from the probe's" in health["problems"][0]
            after = await asked(client)
            assert after[::2] == before[:1] * 12
            assert {name for name, _ in after[1::2]} == {"v2"}
            hour, now = timedelta(hours=1), datetime.now(UTC)
            logged = open_store(serving["database"]).auctions(now - hour, now + hour, False)
            written = {(one.auction.weight_version, one.auction.canary) for one in logged}
            assert written == {("v1", False), ("v2", True), ("v2", False)}

    asyncio.run(asyncio.wait_for(scenario(), 240))
