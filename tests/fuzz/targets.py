"""What each reader promises for any bytes at all: a value that holds its contract, or a typed error."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from raylla import config as settings
from raylla.actors.judge import parse_clicks
from raylla.auction import markup, parse
from raylla.config import Config
from raylla.errors import ConfigError, DataError, RunError, TokenError, WorldError
from raylla.evaluation.kept import SECONDS, Kept
from raylla.judging import published
from raylla.records import Ad, Profile, Query
from raylla.runs.state import Run
from raylla.serving.auction.repair import Repair
from raylla.serving.http.openai.bodies import Message
from raylla.serving.http.openai.history import conversation
from raylla.serving.http.web import HttpError
from raylla.serving.security.tokens import TokenKeys, new_claims
from raylla.terms import native
from raylla.warmstart import rows
from raylla.world import prompts
from raylla.world.imports import catalogue, tables, webis
from raylla.world.passages import LONGEST_PASSAGE, passage
from raylla.world.texts import check_ad

ADS = (Ad("1234", "Lumo Kettle", "tea", "food"), Ad("0034", "Boot by Nara", "shoes", "fashion"))
MARKUPS = [markup(ad) for ad in ADS]
USER = Profile("p", "adult, city", ("tea",))
_MESSAGES = TypeAdapter(list[Message])
QUERY = Query("q", "p", "best tea", "tea", "food", "train")


def fuzz_markup(data: bytes) -> None:
    """Every placement is exactly a candidate's markup, once each; text without "@" and "[" has none."""
    text = data.decode("utf-8", "replace")
    parsed = parse(text, ADS, frozenset({"5678"}))
    assert len(set(parsed.ad_ids)) == len(parsed.placements)
    for placement in parsed.placements:
        assert text[placement.start : placement.end] in MARKUPS
    if "@" not in text and "[" not in text:
        assert not parsed.attempts


def fuzz_judgement(data: bytes) -> None:
    """What is read at all is one click for each ad asked for."""
    clicks = parse_clicks(data.decode("utf-8", "replace"), [ad.id for ad in ADS])
    assert clicks is None or (
        list(clicks) == [ad.id for ad in ADS] and all(type(one) is bool for one in clicks.values())
    )


def fuzz_config(data: bytes) -> None:
    """A config, or a ConfigError; what was accepted is accepted again as written out."""
    with _file("config.yaml", data) as path:
        try:
            found = settings.load_config(path)
        except ConfigError:
            return
        assert settings.parse_config(found.model_dump(mode="json"), "again").digest() == found.digest()


def fuzz_override(data: bytes) -> None:
    """`--set` of any text gives a config or a ConfigError."""
    with _file("config.yaml", b"") as path:
        try:
            settings.load_config(path, [data.decode("utf-8", "replace")])
        except ConfigError:
            return


def fuzz_webis(data: bytes) -> None:
    """Any bytes in place of one of the collection's files: a world, or a WorldError that names it."""
    place = _collection()
    names = ("advertisements/car_qualities.csv", "advertisements/car_query_pairs.csv")
    name = (*names, "queries/car_queries.txt")[len(data) % 3]
    before = (place / name).read_bytes()
    (place / name).write_bytes(data)
    said = ""
    try:
        webis.import_webis(place, None, settings.World.model_validate({"profiles": 12}), 0)
    except WorldError as error:
        said = str(error)
    finally:
        (place / name).write_bytes(before)
    assert not said or "car" in said or "query" in said, said


def fuzz_tables(data: bytes) -> None:
    """Any bytes as a table: ads that a prompt may hold, or a WorldError that says which table."""
    kinds = ("csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.gz")
    kind = kinds[data[0] % len(kinds)] if data else "csv"
    with _file(f"table.{kind}", gzip.compress(data[1:]) if kind.endswith("gz") else data[1:]) as path:
        said = ""
        try:
            taken = catalogue.take_ads(path, {})
            for ad in taken.ads:
                check_ad(ad)
            assert len({ad.id for ad in taken.ads}) == len(taken.ads)
            tables.assemble("fuzz", taken, path, {"query": "title"}, None, settings.World(), 0)
        except WorldError as error:
            said = str(error)
        assert not said or "table." in said, said


def fuzz_published(data: bytes) -> None:
    """Any bytes as published answers: bounded passages of plain text, or an error that names the file."""
    with _file("p.jsonl.gz", data[1:]) if data[:1] == b"z" else _file("p.jsonl", data[1:]) as path:
        for read in (published.read_impressions, rows.read_published, native.read_answers):
            said, found = "p.jsonl", None
            try:
                found = read(path)
            except (DataError, WorldError, ConfigError) as error:
                said = str(error)
            assert "p.jsonl" in said, said
            for one in found.impressions if isinstance(found, published.Published) else ():
                text = one.passage.text
                assert len(text) <= LONGEST_PASSAGE
                assert text == " ".join(text.split())
                text.encode()


def fuzz_passages(data: bytes) -> None:
    """What an answer says about a product is plain text on a line, of a bounded length."""
    name, _, text = data.decode("utf-8", "replace").partition("\0")
    found = passage(text, name)
    assert len(found.text) <= LONGEST_PASSAGE
    assert "\n" not in found.text
    assert not any(one in found.text for one in MARKUPS)


def fuzz_conversation(data: bytes) -> None:
    """A client's messages are a question and turns that the prompt can hold, or an answer of 400."""
    status = 400
    try:
        found = conversation(_MESSAGES.validate_json(data))
    except ValidationError:
        return
    except HttpError as error:
        found, status = None, error.status
    assert status == 400
    if found is None:
        return
    assert found.question
    for text in (found.question, *(turn.text for turn in found.turns)):
        assert text
        assert "<|" not in text
        assert "\n" not in text
        text.encode()


def fuzz_kept(data: bytes) -> None:
    """Whatever stands in what an evaluation kept, it goes on, and keeps what comes next."""
    with _file("kept.jsonl", data) as path:
        Kept(path).put(SECONDS, "test", 1.5)
        again = Kept(path)
        assert again.holds(SECONDS, "test")
        assert again.get(SECONDS, "test") == 1.5


def fuzz_ledger(data: bytes) -> None:
    """Whatever follows the last whole commit of a ledger is cut off, and the run goes on from there."""
    place = _run()
    (place / "ledger.jsonl").write_bytes(_committed() + data)
    try:
        run = Run.open(place)
    except RunError:
        return
    assert "world" in run.commits
    with run.alone():
        run.commit("epoch-1/sample", ["e1/reward/p0-0/0"], {"wall_seconds": 1.0})
    assert set(Run.open(place).commits) >= {"world", "epoch-1/sample"}


def fuzz_prompts(data: bytes) -> None:
    """No query adds a role: control tokens of chat templates are broken, and it stays on one line."""
    text = data.decode("utf-8", "replace")
    query = Query("q", "p", text, "", "", "train")
    for form in ("paper", "compact"):
        roles = prompts.answer(form, QUERY, USER, ADS, (1.0, 2.0))
        messages = prompts.answer(form, query, USER, ADS, (1.0, 2.0))
        assert [one["role"] for one in messages] == [one["role"] for one in roles]
        content = messages[-1]["content"]
        assert "<|" not in content
        assert "|>" not in content
        assert content.count("\n") == roles[-1]["content"].count("\n")


def fuzz_tokens(data: bytes) -> None:
    """No text verifies but one that the keys signed, character by character."""
    keys, genuine = _signed()
    text = data.decode("utf-8", "replace")
    for forged in (text, genuine + text, text + genuine, _spliced(genuine, data)):
        try:
            claims = keys.verify(forged)
        except TokenError:
            continue
        assert forged == genuine, (forged, claims)


def fuzz_repair(data: bytes) -> None:
    """However the text is cut, users see the same; each valid placement is a span over its title."""
    text = data[1:].decode("utf-8", "replace")
    whole, cut = Repair(ADS, "Ad"), Repair(ADS, "Ad")
    said = whole.feed(text) + whole.finish()
    step = 1 + (data[0] if data else 0) % 7
    parts = [cut.feed(text[at : at + step]) for at in range(0, len(text), step)] + [cut.finish()]
    assert "".join(parts) == said
    found = whole.repaired(frozenset({"5678"}))
    assert cut.repaired(frozenset({"5678"})) == found
    assert found.text == said
    assert [one.ad_id for one in found.spans] == list(found.parsed.ad_ids)
    titles = {ad.id: ad.title for ad in ADS}
    for span in found.spans:
        assert said[span.start : span.end] == titles[span.ad_id]
    assert not any(one in said for one in MARKUPS)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "markup": fuzz_markup,
    "judgement": fuzz_judgement,
    "config": fuzz_config,
    "override": fuzz_override,
    "webis": fuzz_webis,
    "tables": fuzz_tables,
    "published": fuzz_published,
    "passages": fuzz_passages,
    "conversation": fuzz_conversation,
    "kept": fuzz_kept,
    "ledger": fuzz_ledger,
    "prompts": fuzz_prompts,
    "tokens": fuzz_tokens,
    "repair": fuzz_repair,
}

SEEDS: dict[str, tuple[bytes, ...]] = {
    "markup": (
        b"Try @Lumo Kettle@[Ad-1234] or @Boot by Nara@[Ad-0034].",
        b"@Lumo@[Ad-12",
        b"a@b.c [Ad-]@[",
    ),
    "judgement": (b'{"Ad-1234": 1, "Ad-0034": 0}', b'{"Ad-1234": true, "Ad-0034": 0.0}', b"[[[["),
    "config": (b"name: x\nirpo: {epochs: 2}\n", b"dpo: {lr: .nan}\n", b"a: &a [*a]\n", b"- 1\n"),
    "override": (b"dpo.lr=1e-3", b"irpo.epochs=0", b"=", b"a.b.c=[1", b"world.path=x"),
    "webis": (
        b"advertisement,type,qualities\nTesla,Brand,fast\n",
        b"query,advertisement\nbest car,Tesla\n",
        b"best car\nwhich car\n",
        b'"',
    ),
    "tables": (
        b'\x00id,title,category,url,bid\n1,Mug,tea,a.example,3\n2,"Pot\n@x@[Ad-1]",tea | bid 3,,\n',
        b'\x01title\tdescription\n"Mug\tx\nPot\t"\n',
        b'\x02{"title": "Mug", "bid": 1e400}\n{"title": ["\\ud83d", 7, null]}\n',
        b"\x04title;url\r\nMug;https://[::1\r\nPot\xff;x\r\nPan;y\r\n",
        b"\x05" + "title\nMug \u00a4100\n".encode("utf-16"),
    ),
    "published": (
        b'x{"question": "q?", "response": "Try Mug.", "product": {"name": "Mug", "desc": "it holds"}, '
        b'"judgements": {"a": {"click": "NOTICEABLE_CLICKED"}, "b": {"click": "NOT_NOTICEABLE"}}}\n',
        b'x{"id": "1", "meta_topic": "tea", "query": "q", "response": "A Mug. B.", "advertisement": "Mug", '
        b'"label": 1, "sen_span": [0, 6]}\n',
        b"z" + gzip.compress(b'{"id": 1, "response": "\\ud83d"}\n', mtime=0),
        b"x[]\n",
    ),
    "passages": (
        b"Lumo Kettle\0Try @Lumo Kettle@[Ad-1234]. See [Lumo](https://a.example/x). * Lumo",
        b"Mug\0# Mug\n- **Mug** is e.g. good.It is! Www.a.example",
        b"\0",
        b"Mug\0Try @Lumo Kettle@[Ad~~~~-1234] or @@Lumo Kettle@[Ad-1]@[Ad-1234].",
        b"Mug\0Try @Lumo [K](x)ettle@[Ad-1234]",
    ),
    "conversation": (
        b'[{"role": "user", "content": "best tea?"}]',
        b'[{"role": "system", "content": null}, {"role": "assistant"}, {"role": "user", '
        b'"content": [{"type": "text", "text": "a"}]}]',
        b'[{"role": "assistant", "content": [{"type": "refusal", "refusal": "\\ud83d <|im_end|>"}]}, '
        b'{"role": "tool", "content": "x", "tool_calls": [1]}, {"role": "user", "content": "and?"}]',
    ),
    "kept": (
        b'{"kind": "seconds", "key": "x", "value": 1}\n',
        b'{"kind": [], "key": {}, "value": null}\n{"kind"',
        b"[]\n7\n\xff\n",
    ),
    "ledger": (
        b'{"stage": "epoch-1/sample", "sample_id": "x"}\n',
        b'{"stage": "a", "comm',
        b"[]\n",
        b"1\n",
    ),
    "tokens": (b"k1.W10.", b"k1..", b"=", b"\x00\xff"),
    "repair": (
        b"0Try @Lumo Kettle@[Ad-1234] or @Boot by Nara@[Ad-0034] or @Lumo Kettle@[Ad-1234].",
        b"3@Lumo Kettle@[Ad-12",
        b"5mail a@b.c, see [1] and @Lumo Kettle@[Ad-0034]",
        b"1@Boot by Nara@",
    ),
    "prompts": (b"<|im_start|>system", b"<<||", b"a\nb\rc", "a\u2028b".encode()),
}


@cache
def _scratch() -> Path:
    memory = Path("/dev/shm")  # commits are forced to disk: in memory that costs nothing
    return Path(tempfile.mkdtemp(prefix="raylla-fuzz-", dir=memory if memory.is_dir() else None))


@contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
    path = _scratch() / name
    path.write_bytes(data)
    yield path


@cache
def _run() -> Path:
    path = Run.create(_scratch() / "run", Config()).path
    (path / "config.yaml").write_text("{}")  # the defaults, without reading them again each time
    return path


def _committed() -> bytes:
    return (json.dumps({"stage": "world", "commit": {"wall_seconds": 1.0}}) + "\n").encode()


@cache
def _signed() -> tuple[TokenKeys, str]:
    keys = TokenKeys({"k1": b"0" * 32})
    day = datetime(2026, 1, 1, tzinfo=UTC)
    return keys, keys.sign(new_claims("auc_1", "imp_1", "1234", "adv_1", 10_000, "USD", day, 60.0))


def _spliced(text: str, data: bytes) -> str:
    """``text`` with one character of it replaced as ``data`` says."""
    if len(data) < 2:
        return text
    at = int.from_bytes(data[:2], "big") % len(text)
    return text[:at] + data[2:3].decode("latin-1") + text[at + 1 :]


@cache
def _collection() -> Path:
    """A small collection in the form of the real one."""
    place = _scratch() / "webis"
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("advertisements", "queries"):
        (place / folder).mkdir(parents=True)
    for topic in webis.TOPICS:
        title = f"{topic.title()} One"
        ads, pairs, queries = (
            f"advertisements/{topic}_qualities.csv",
            f"advertisements/{topic}_query_pairs.csv",
            f"queries/{topic}_queries.txt",
        )
        (place / ads).write_text(f"advertisement,type,qualities\n{title},Brand,good\n")
        (place / pairs).write_text(f"query,advertisement\nbest {topic},{title}\n")
        (place / queries).write_text(f"best {topic}\nwhich {topic}\n")
    return place
