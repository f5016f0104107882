"""Retrieval: the most relevant of the eligible, whatever the mask, and after every refresh."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.records import Ad
from raylla.world import retrieval
from raylla.world.retrieval import Retrieval, Vectors

DIM = 24


class _Encoder:
    """A fixed random vector for each text, clustered by the text's topic; counts what it encoded."""

    def __init__(self) -> None:
        self.encoded = 0

    def __call__(self, texts: list[str]) -> Vectors:
        self.encoded += len(texts)
        return np.stack([self._vector(text.split()) for text in texts])

    def _vector(self, words: list[str]) -> Vectors:
        topic = next(word for word in words if word.startswith("topic"))
        centre = np.random.default_rng(list(topic.encode())).standard_normal(DIM)
        own = np.random.default_rng(list(" ".join(words).encode())).standard_normal(DIM)
        return (5 + centre + 0.3 * own).astype(np.float32)


def _ads(count: int, offset: int = 0) -> list[Ad]:
    return [
        Ad(str(1000 + index), f"Brand {index}", f"topic{index % 40}", "")
        for index in range(offset, offset + count)
    ]


def _built(ads: list[Ad]) -> tuple[Retrieval, _Encoder]:
    encode = _Encoder()
    found = Retrieval(encode([f"topic{topic} anything" for topic in range(40)]))
    encode.encoded = 0
    found.refresh(ads, encode)
    return found, encode


def _query(topic: int) -> Vectors:
    return _Encoder()([f"topic{topic} brand 7"])[0]


def _topics(ads: list[Ad], rows: list[int]) -> set[str]:
    return {ads[row].category for row in rows}


@pytest.fixture
def inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small catalogue in inverted lists, as a large one is."""
    monkeypatch.setattr(retrieval, "FLAT", 50)


def test_finds_the_ads_of_the_querys_topic() -> None:
    ads = _ads(400)
    found, encode = _built(ads)
    assert encode.encoded == len(found) == 400
    for topic in range(40):
        rows = found.search(_query(topic), None, 6)
        assert len(set(rows)) == 6
        assert _topics(ads, rows) == {f"topic{topic}"}


@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 12))
def test_mask_and_k_are_kept(seed: int, share: float, k: int) -> None:
    mask = np.random.default_rng(seed).random(400) < share
    rows = SHARED.search(_query(seed % 40), mask, k)
    assert len(rows) == len(set(rows)) == min(k, mask.sum())
    assert mask[rows].all()


SHARED, _ = _built(_ads(400))


@pytest.mark.usefixtures("inverted")
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_inverted_lists_agree_with_comparing_all(share: float) -> None:
    """Beyond FLAT rows most of the true best are found, masked or not, and nothing ineligible."""
    found, _ = _built(_ads(3000))
    mask = np.random.default_rng(1).random(3000) < share
    hits = 0
    for topic in range(40):
        rows = found.search(_query(topic), mask, 5)
        assert len(rows) == 5
        assert mask[rows].all()
        hits += len(set(rows) & set(found.search(_query(topic), mask, 5, exact=True)))
    assert hits / 200 > 0.95


@pytest.mark.usefixtures("inverted")
@pytest.mark.parametrize("topics", [8, 10, 40])
def test_a_mask_that_goes_with_the_topic_hides_nothing_else(
    monkeypatch: pytest.MonkeyPatch, topics: int
) -> None:
    """The question's own topic is blocked: the best of the others are found wherever they are."""
    monkeypatch.setattr(retrieval, "PROBES", 6)  # of 64 lists; a large catalogue has 24 of 256
    ads = [Ad(str(row), f"Brand {row}", f"topic{row % topics}", "") for row in range(4000)]
    found, encode = _built(ads)
    hits = 0
    for topic in range(0, topics, topics // 8):
        mask = np.arange(4000) % topics != topic
        rows = found.search(_query(topic), mask, 5)
        assert mask[rows].all()
        hits += len(set(rows) & set(found.search(_query(topic), mask, 5, exact=True)))
    assert hits / (5 * len(range(0, topics, topics // 8))) >= 0.95
    # and so it stays where ads have moved
    moved = [Ad(ad.id, f"{ad.title} new", f"topic{(row // 7) % topics}", "") for row, ad in enumerate(ads)]
    changed = [new if row % 9 == 0 else old for row, (old, new) in enumerate(zip(ads, moved, strict=True))]
    assert found.refresh(changed, encode) == len(ads[::9])
    mask = np.array([ad.category != "topic3" for ad in changed])
    rows = found.search(_query(3), mask, 20)
    assert len(set(rows) & set(found.search(_query(3), mask, 20, exact=True))) >= 19


@pytest.mark.usefixtures("inverted")
def test_refresh_encodes_what_is_new_and_drops_what_is_gone() -> None:
    ads = _ads(600)
    found, encode = _built(ads)
    index = found._index
    assert found.refresh(ads, encode) == 0
    changed = [*ads[:100], Ad("9999", "Brand 7", "topic77", ""), *ads[101:], *_ads(3, 600)]
    assert found.refresh(changed, encode) == 4
    assert encode.encoded == 604
    assert found._index is index, "made anew for four rows"
    assert found.search(_query(77), None, 1) == [100]
    only_new = np.arange(603) >= 600
    assert set(found.search(_query(0), only_new, 9)) == {600, 601, 602}
    assert found.refresh(changed[:500], encode) == 0
    assert max(found.search(_query(9), None, 400)) < 500
    assert found.refresh(_ads(1300), encode) == 1300
    assert found._index is not index, "kept although the catalogue doubled"
    assert len(found.search(_query(9), None, 5)) == 5


def test_a_growing_and_an_emptied_catalogue() -> None:
    found, encode = _built([])
    assert found.search(_query(0), None, 3) == []
    assert found.refresh(_ads(1), encode) == 1
    assert found.search(_query(0), None, 3) == [0]
    assert found.refresh(_ads(60), encode) == 60
    assert len(found.search(_query(0), np.ones(60, dtype=bool), 3)) == 3
    assert found.refresh([], encode) == 0
    assert found.search(_query(0), np.ones(0, dtype=bool), 3) == []


@pytest.mark.usefixtures("inverted")
def test_search_during_refresh() -> None:
    """A search sees the old catalogue or the new one, never half of each."""
    found, encode = _built(_ads(300))
    failures: list[BaseException] = []
    stop = threading.Event()

    def search() -> None:
        try:
            while not stop.is_set():
                rows = found.search(_query(3), None, 4)
                assert len(rows) == 4
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    for count in (310, 320, 700, 710, 300):
        found.refresh(_ads(count), encode)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert not failures


@pytest.mark.parametrize("flat", [50, 20_000])
def test_a_mask_may_be_ahead_or_behind(monkeypatch: pytest.MonkeyPatch, flat: int) -> None:
    """Eligibility and retrieval take over a catalogue one after the other; requests come between."""
    monkeypatch.setattr(retrieval, "FLAT", flat)
    found, encode = _built(_ads(398))
    ahead = np.ones(400, dtype=bool)
    assert set(found.search(_query(39), ahead, 12)) >= {39, 79, 119, 159, 199, 239, 279, 319, 359}
    assert max(found.search(_query(38), ahead, 398)) == 397
    found.refresh(_ads(400), encode)
    behind = np.ones(398, dtype=bool)
    rows = found.search(_query(39), behind, 398)
    assert len(rows) >= 9
    assert max(rows) <= 397
    assert found.search(_query(39), np.ones(0, dtype=bool), 3) == []


def test_retrieval_wants_queries() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        Retrieval(np.zeros((0, DIM), dtype=np.float32))
