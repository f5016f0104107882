"""The grammar that pocket models learn from: profiles, ads, queries, answers and clicks, all drawn.

Ads are drawn afresh for every sample, so a model can only place them by copying them out of its
prompt.  A share of "wild" listings (titles of any words, digits and punctuation, labels of any
word) keeps the copying from leaning on the lexicon.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raylla.auction.markup import markup, parse
from raylla.records import Ad, Profile, Query
from raylla.world import clicks, prompts
from raylla.world.synthetic import lexicon
from raylla.world.synthetic.names import FIRST_WORDS, ad_ids, brands, wild_title, wild_word, word

OPENERS = (
    "A good {topic} choice should feel {quality} and {quality2}.",
    "For {topic}, look for something {quality}.",
    "Start with what you need most, often a {quality} option.",
    "With {topic} it helps to compare a few {quality} options.",
    "Think about how often you will use it.",
    "It depends on your budget, but {quality} is worth paying for.",
    "As a {persona}, you may want something {quality}.",
    "Most people pick {topic} that is {quality}.",
)
NATIVE = (
    "You could try {ad} since it is {quality}.",
    "Many people like {ad} for daily use.",
    "One {quality} option is {ad} here.",
    "If you want something {quality}, {ad} fits well.",
    "Another idea is {ad} for a {persona}.",
    "People often mention {ad} as a {quality} pick.",
)
BLUNT = (
    "Buy {ad} now!",
    "Hurry, {ad} is on sale!",
    "Best deal: {ad} today!",
    "Click {ad} to save!",
    "Order {ad} right away!",
)
CLOSERS = (
    "Take your time before you decide.",
    "Ask a friend who knows {topic}.",
    "That should get you started.",
    "Check the reviews first.",
)
ASKS = (
    "which {word} should I get?",
    "what is a good {word} for a {persona}?",
    "how do I choose {word} that is {quality}?",
    "best {word} near me",
    "can you recommend a {quality} {word}?",
    "I need {word}, any ideas?",
    "{quality} {word} for a {persona}",
    "where can I find {word} in {city}?",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and the completion that a pocket model should learn for it."""

    messages: prompts.Messages
    completion: str
    chances: tuple[float, ...] = ()
    """For a judgement: the click probability behind each of its 0s and 1s."""
    decided: bool = False
    """Whether the prompt, with the ads named before, decides which ad is named last."""


def ads(rng: random.Random, category: str, count: int, known: bool = True) -> list[Ad]:
    """``count`` candidates around ``category``: two of it, two of its theme, others from anywhere."""
    theme = lexicon.theme_of(category)
    related = [name for name in lexicon.THEMES[theme] if name != category]
    wanted = [category, category, *rng.sample(related, 2)]
    wanted += rng.choices(lexicon.categories(), k=max(0, count - len(wanted)))
    rng.shuffle(wanted)
    wanted = wanted[:count]
    return draw_catalogue(rng, wanted, known)


def draw_catalogue(rng: random.Random, wanted: Sequence[str], known: bool = True) -> list[Ad]:
    """An ad for each category of ``wanted``; as far as the lexicon goes, no two brands share a word and no
    two ads of a category a noun."""
    nouns = {
        name: rng.sample(of, len(of)) for group in lexicon.THEMES.values() for name, of in group.items()
    }
    used: Counter[str] = Counter()
    catalogue: list[Ad] = []
    numbers, names = ad_ids(rng, len(wanted)), brands(rng, len(wanted), known)
    for name, number, brand in zip(wanted, numbers, names, strict=True):
        noun = nouns[name][used[name] % len(nouns[name])]
        used[name] += 1
        catalogue.append(Ad(number, f"{brand} {noun}", name, lexicon.theme_of(name)))
    return catalogue


def wild_ads(rng: random.Random, count: int) -> list[Ad]:
    """``count`` candidates with wild titles and labels; some titles begin alike, some ids too."""
    ids = ad_ids(rng, count)
    if rng.random() < 0.3:
        ids = [str(number) for number in rng.sample(range(1000, 10000), count)]
    labels = [rng.choice((word(rng), rng.choice(lexicon.categories()))) for _ in range(2)]
    alike = rng.random() < 0.25
    by_brand: dict[str, Ad] = {}
    for number in ids:
        text = wild_title(rng)
        if alike and by_brand and rng.random() < 0.4:
            text = f"{rng.choice(list(by_brand)).split()[0]} {text}"
        while text in by_brand:
            text = wild_title(rng)
        by_brand[text] = Ad(number, text, rng.choice(labels), "")
    return list(by_brand.values())


def profile(rng: random.Random, id: str = "p0") -> Profile:
    """A user with an age, an occupation, a city and three interests."""
    return Profile(id, lexicon.basics(rng), tuple(rng.sample(lexicon.categories(), lexicon.INTERESTS)))


def _query_text(rng: random.Random, category: str) -> str:
    """A question about ``category``, which it names itself or by one of its nouns."""
    noun = rng.choice(lexicon.THEMES[lexicon.theme_of(category)][category]).lower()
    return _fill(rng, rng.choice(ASKS), word=category if rng.random() < 0.7 else noun)


def query(rng: random.Random, user: Profile, category: str | None = None) -> Query:
    """A query of ``user``, about one of the interests unless a category is given."""
    about = category or rng.choice(user.interests)
    return Query("q0", user.id, _query_text(rng, about), about, lexicon.theme_of(about), "train")


def answer_text(
    rng: random.Random,
    about: Query,
    candidates: Sequence[Ad],
    *,
    taste: float = 0.5,
    blunt: float = 0.6,
    errors: float = 0.15,
    counts: Sequence[float] = (10, 28, 32, 20, 10),
) -> str:
    """A helpful answer with ads, by the base Ad-LLM's habits.

    ``taste``: extra weight of related candidates; ``blunt``: share of pushy ad sentences;
    ``errors``: share of placements that break the format; ``counts``: weights of 0, 1, 2... ads.
    The bids play no part.
    """
    sentences = [_fill(rng, rng.choice(OPENERS), topic=about.category or "this")]
    number = min(len(candidates), rng.choices(range(len(counts)), counts)[0])
    for ad in _tasteful(rng, about, candidates, number, taste):
        form = rng.choice(BLUNT if rng.random() < blunt else NATIVE)
        shown = _broken(rng, ad) if rng.random() < errors else markup(ad)
        sentences.append(_fill(rng, form, ad=shown))
    if rng.random() < 0.3:
        sentences.append(_fill(rng, rng.choice(CLOSERS), topic=about.category or "this"))
    return " ".join(sentences)


def bids(rng: random.Random, count: int) -> list[float | None]:
    """Bids U{1..100}; one sample in ten hides them all, one in twenty has a zero."""
    if rng.random() < 0.1:
        return [None] * count
    drawn: list[float | None] = [float(rng.randint(1, 100)) for _ in range(count)]
    if drawn and rng.random() < 0.05:
        drawn[rng.randrange(count)] = 0.0
    return drawn


def copy_sample(
    rng: random.Random, least: int = 4, most: int = 7, kinds: Sequence[float] = (0.2, 0.4, 0.4)
) -> Sample:
    """The circuit that everything rests on: repeat candidates out of the prompt.

    "list" asks for all of them in any order, "top" for one of the highest bid, "fit" for one that
    is closest to query and user: what any pretrained model can do when told to, and what
    alignment can call on. ``kinds``: the weights of the three.
    """
    about, user, candidates = _scene(rng, wild=0.35, least=least, most=most)
    drawn = bids(rng, len(candidates))
    kind = rng.choices(("list", "top", "fit"), kinds)[0]
    chosen = rng.sample(range(len(candidates)), len(candidates))
    if kind == "top":
        chosen = [max(chosen, key=lambda place: drawn[place] or 0)]
    if kind == "fit":
        chosen = [max(chosen, key=lambda place: prompts.relation(about, user, candidates[place]))]
    messages = prompts.answer("compact", replace(about, text=kind), user, candidates, drawn)
    text = "".join(f" {markup(candidates[place])}" for place in chosen)
    return Sample(messages, text, decided=True)


def repeat_sample(rng: random.Random) -> Sample:
    """Words of any kind, and again in pieces of another order: what a circuit that copies grows on."""
    words = [
        rng.choice((wild_word(rng), word(rng), rng.choice(FIRST_WORDS))) for _ in range(rng.randint(8, 24))
    ]
    pieces, place = [], 0
    while place < len(words):
        size = rng.randint(2, 6)
        pieces.append(" ".join(words[place : place + size]))
        place += size
    text = " ".join(pieces)
    rng.shuffle(pieces)
    return Sample([{"role": "user", "content": text}], " " + " ".join(pieces))


def list_sample(rng: random.Random) -> Sample:
    """`copy_sample` of all candidates: many copies for one prompt."""
    return copy_sample(rng, kinds=(1, 0, 0))


def pick_sample(rng: random.Random) -> Sample:
    """`copy_sample` of the one right candidate, among few: what makes a model read bids and fit."""
    return copy_sample(rng, 3, 6, (0, 1, 1))


def answer_sample(rng: random.Random, known: bool = True, wild: float = 0.25) -> Sample:
    """An ad-integrated answer of the base Ad-LLM; now and then there are few candidates, or none."""
    least, most = rng.choices(((0, 0), (1, 4), (5, 7)), (0.04, 0.2, 0.76))[0]
    about, user, candidates = _scene(rng, wild=wild, least=least, most=most, known=known)
    messages = prompts.answer("compact", about, user, candidates, bids(rng, len(candidates)))
    return Sample(messages, answer_text(rng, about, candidates))


def ask_sample(rng: random.Random) -> Sample:
    """A query that a user asks."""
    user = profile(rng)
    return Sample(prompts.ask("compact", user), query(rng, user).text)


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer as the judge sees it, with the click model's probability of each placed ad."""

    messages: prompts.Messages
    probabilities: dict[str, float]


def judged(rng: random.Random, known: bool = True) -> Judged:
    """An answer with at least one placed ad, from habits of every kind: the judge will also see
    the answers of trained policies."""
    while True:
        about, user, candidates = _scene(rng, wild=0.2, least=5, most=7, known=known)
        text = answer_text(
            rng,
            about,
            candidates,
            taste=rng.choice((0.0, 0.5, 3.0, 10.0)),
            blunt=rng.choice((0.0, 0.3, 0.6)),
            errors=rng.choice((0.05, 0.3)),
            counts=rng.choice(((0, 30, 32, 24, 14), (0, 50, 40, 10, 0))),
        )
        if rng.random() < 0.4:
            text = _messed(rng, text)
        placements = parse(text, candidates).placements
        if placements:
            by_id = {ad.id: ad for ad in candidates}
            shown = [by_id[placement.ad_id] for placement in placements]
            p = clicks.click_probabilities(about, user, text, placements, by_id)
            return Judged(prompts.judge("compact", about, user, text, shown), p)


def judge_sample(rng: random.Random) -> Sample:
    """A judgement drawn from the click model."""
    scene = judged(rng)
    drawn = {f"Ad-{ad}": int(rng.random() < p) for ad, p in scene.probabilities.items()}
    text = json.dumps(drawn, separators=(",", ":"))
    return Sample(scene.messages, text, tuple(scene.probabilities.values()))


def _scene(
    rng: random.Random, wild: float, least: int, most: int, known: bool = True
) -> tuple[Query, Profile, list[Ad]]:
    user = profile(rng)
    about = query(rng, user, None if rng.random() < 0.5 else rng.choice(lexicon.categories()))
    count = rng.randint(least, most)
    if rng.random() < wild:
        candidates = wild_ads(rng, count)
        if candidates and rng.random() < 0.5:
            text = " ".join(word(rng) for _ in range(rng.randint(2, 8)))
            about = Query("q0", user.id, text, candidates[0].category, "", "train")
        return about, user, candidates
    return about, user, ads(rng, about.category, count, known)


def _tasteful(
    rng: random.Random, about: Query, candidates: Sequence[Ad], number: int, taste: float
) -> list[Ad]:
    """``number`` distinct candidates, related ones a little more often."""
    left, chosen = list(candidates), []
    for _ in range(number):
        weights = [
            1 + taste * ((ad.category == about.category) + 0.5 * (ad.theme == about.theme)) for ad in left
        ]
        pick = rng.choices(left, weights)[0]
        left.remove(pick)
        chosen.append(pick)
    return chosen


def _broken(rng: random.Random, ad: Ad) -> str:
    """A placement of ``ad`` that breaks the format in one of the ways models do."""
    kind = rng.randrange(3)
    if kind == 0:
        return f"@{ad.title}@"
    if kind == 1:
        words = ad.title.split()
        changed = (
            " ".join(words[:-1])
            if len(words) > 1 and rng.random() < 0.7
            else f"{ad.title} {rng.choice(lexicon.ADJECTIVES)}"
        )
        return f"@{changed}@[Ad-{ad.id}]"
    return f"[Ad-{ad.id}]"


def _messed(rng: random.Random, text: str) -> str:
    """``text`` with a slip that a policy's answer may hold: an id that is wrong, or a sentence twice."""
    if rng.random() < 0.3:
        sentences = re.split(r"(?<=[.!]) ", text)
        return " ".join([*sentences, rng.choice(sentences)])
    ids = list(re.finditer(r"(?<=\[Ad-)\d{4}(?=\])", text))
    if not ids:
        return text
    place = rng.choice(ids)
    kept = rng.choice((0, 2))
    wrong = str(rng.randrange(1000, 10000))
    return text[: place.start() + kept] + wrong[kept:] + text[place.end() :]


def _fill(rng: random.Random, form: str, **known: str) -> str:
    quality, other = rng.sample(lexicon.QUALITIES, 2)
    values = {
        "quality": quality,
        "quality2": other,
        "persona": rng.choice(lexicon.PERSONAS),
        "city": rng.choice(lexicon.CITIES),
        **known,
    }
    return form.format(**values)
