"""Names that nobody has: brands, titles of any shape, ids.

Brands are split in two by a checksum: training draws the known ones, evaluation can ask for the
others.
"""

from __future__ import annotations

import random
import zlib

from raylla.world.synthetic import lexicon

FIRST_WORDS = tuple(
    """
    Amber Anchor Apple Arctic Arrow Aspen Atlas Autumn Azure Badger Bamboo Banner Basalt Beacon Birch
    Bison Bolt Bramble Breeze Bronze Candle Canyon Carbon Cedar Chalk Cherry Cinder Clover Cobalt Comet
    Copper Coral Cotton Crane Crater Crystal Cypress Dawn Delta Desert Diamond Dragon Drift Dusk Eagle
    Echo Elder Ember Emerald Falcon Feather Fern Flint Forest Fossil Frost Garnet Ginger Glacier Granite
    Harbor Hazel Heron Hickory Honey Indigo Iris Iron Island Ivory Jade Jasper Juniper Lagoon Laurel
    Lilac Linen Lotus Maple Marble Meadow Mint Moss Nectar Oak Ocean Olive Onyx Opal Orchid Otter Pearl
    Pebble Pepper Pine Plum Quartz Quill Raven River Robin Ruby Saffron Sage Salmon Sand Sierra Slate
    Spruce Star Storm Summer Swan Thistle Thunder Tiger Topaz Tulip Walnut Willow
    """.split()
)
SECOND_WORDS = tuple(
    """
    Arch Barn Bay Bell Bend Branch Brook Cabin Cape Castle Cave Chapel Cliff Corner Cottage Court Cove
    Creek Crest Cross Crown Dale Den Depot Dock Door Falls Farm Field Ford Forge Fort Fountain Garden
    Gate Glen Gorge Grove Guild Hall Hatch Haven Hearth Hedge Hill Hive Hollow House Hut Inn Keep Key
    Kiln Kingdom Lake Landing Lane Ledge Loft Lodge Manor Market Mesa Mill Mine Mount Nest Nook Orchard
    Outpost Palace Pantry Parade Park Pass Path Peak Pier Place Plain Plaza Point Pond Port Post Quarry
    Ranch Reef Ridge Road Rock Roof School Shed Shop Shore Spire Spring Square Stable Station Stone
    Street Summit Tavern Temple Terrace Tower Trail Vale Valley Vault View Village Vine Wharf Wood Yard
    """.split()
)

ONSETS = tuple(
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sk sl sm sp st str sw t "
    "th tr v w wh y z".split()
)
VOWELS = tuple("a a a e e e i i i o o o u u ai ea ee ie oa oo ou y".split())
CODAS = tuple("b ck d g l ll m n n n nd ng nt p r r rd rk rs rt s s ss st t t x".split())
_ENDINGS = tuple("a al an ed er er es ia ic ing ing ion ive le ly man ment o or s s son tion us".split())
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def brands(rng: random.Random, count: int, known: bool = True) -> list[str]:
    """``count`` made-up brands of two words, all distinct; none shares a word with another until the
    words run out.

    `known` ones may occur in training, the others never do.
    """
    names: dict[str, None] = {}
    while len(names) < count:
        turn = min(2 * count + 8, len(FIRST_WORDS), len(SECOND_WORDS)) if known else len(SECOND_WORDS)
        firsts, seconds = rng.sample(FIRST_WORDS, turn), rng.sample(SECOND_WORDS, turn)
        for first, second in zip(firsts, seconds, strict=True):
            name = f"{first} {second}"
            if (zlib.crc32(name.encode()) % 8 != 0) == known:
                names[name] = None
    return list(names)[:count]


def word(rng: random.Random) -> str:
    """A word that nobody made before: syllables, now and then an ending."""
    length = rng.choice((1, 1, 2, 2, 2, 3))
    syllables = [
        rng.choice(ONSETS) + rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.5 else "")
        for _ in range(length)
    ]
    return "".join(syllables) + (rng.choice(_ENDINGS) if rng.random() < 0.4 else "")


def wild_word(rng: random.Random) -> str:
    """One word of a wild title: mostly spelled, with the signs and digits of real names."""
    kind = rng.random()
    if kind < 0.55:
        return word(rng).capitalize()
    if kind < 0.7:
        return rng.choice(FIRST_WORDS + SECOND_WORDS + lexicon.ADJECTIVES + lexicon.CITIES)
    if kind < 0.76:
        return word(rng).capitalize() + rng.choice(("'s", "!", "+", ".com", "™", "é", ":"))
    if kind < 0.84:
        return rng.choice((str(rng.randrange(10)), str(rng.randrange(100)), str(rng.randrange(3000))))
    if kind < 0.92:
        return "".join(rng.choices(LETTERS, k=rng.choice((1, 2, 2, 3))))
    if kind < 0.96:
        return word(rng).capitalize() + rng.choice(("", "-")) + word(rng).capitalize()
    return rng.choice(("&", "of", "the", "and", "by", "-", "for"))


def wild_title(rng: random.Random) -> str:
    """A title of any shape: one to five words."""
    return " ".join(wild_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 2, 3, 3, 4, 5))))


def ad_ids(rng: random.Random, count: int) -> list[str]:
    """``count`` ids of four digits; none shares its first or its last two with another (up to 90 ids)."""
    firsts = rng.sample(range(10, 100), min(count, 90))
    lasts = rng.sample(range(100), min(count, 100))
    ids = [f"{first}{last:02}" for first, last in zip(firsts, lasts, strict=False)]
    taken = set(ids)
    while len(ids) < count:
        another = str(rng.randrange(1000, 10000))
        if another not in taken:
            taken.add(another)
            ids.append(another)
    return ids
