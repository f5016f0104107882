"""The vocabulary of the synthetic world: themes, their categories, and the nouns that name them."""

from __future__ import annotations

import random
import re
from functools import cache

THEMES: dict[str, dict[str, tuple[str, ...]]] = {
    "finance": {
        "savings": ("Account", "Deposit"),
        "loans": ("Loan", "Mortgage"),
        "cards": ("Card", "Wallet"),
        "insurance": ("Cover", "Policy"),
        "investing": ("Fund", "Broker"),
    },
    "motoring": {
        "cars": ("Sedan", "Hatchback"),
        "trucks": ("Pickup", "Truck"),
        "tires": ("Tire", "Wheel"),
        "rentals": ("Rental", "Shuttle"),
        "chargers": ("Charger", "Battery"),
    },
    "gaming": {
        "consoles": ("Console", "Handheld"),
        "headsets": ("Headset", "Earphone"),
        "puzzles": ("Puzzle", "Jigsaw"),
        "controllers": ("Gamepad", "Joystick"),
        "boardgames": ("Dice", "Chess"),
    },
    "health": {
        "vitamins": ("Vitamin", "Capsule"),
        "skincare": ("Cream", "Serum"),
        "dental": ("Toothbrush", "Floss"),
        "sleep": ("Pillow", "Mattress"),
        "glasses": ("Lens", "Frame"),
    },
    "home": {
        "sofas": ("Sofa", "Armchair"),
        "lamps": ("Lamp", "Lantern"),
        "bedding": ("Blanket", "Duvet"),
        "paint": ("Paint", "Varnish"),
        "tools": ("Drill", "Hammer"),
    },
    "food": {
        "tea": ("Teapot", "Kettle"),
        "coffee": ("Espresso", "Grinder"),
        "pizza": ("Pizza", "Calzone"),
        "bakery": ("Bread", "Pastry"),
        "snacks": ("Crisps", "Popcorn"),
    },
    "fashion": {
        "shoes": ("Boot", "Sneaker"),
        "jackets": ("Jacket", "Parka"),
        "watches": ("Watch", "Strap"),
        "bags": ("Backpack", "Satchel"),
        "jewelry": ("Ring", "Necklace"),
    },
    "media": {
        "movies": ("Cinema", "Film"),
        "music": ("Playlist", "Album"),
        "podcasts": ("Podcast", "Radio"),
        "books": ("Novel", "Reader"),
        "cameras": ("Camera", "Tripod"),
    },
    "travel": {
        "hotels": ("Hotel", "Resort"),
        "flights": ("Flight", "Airline"),
        "cruises": ("Cruise", "Ferry"),
        "luggage": ("Suitcase", "Trolley"),
        "camping": ("Tent", "Hammock"),
    },
    "fitness": {
        "yoga": ("Mat", "Studio"),
        "running": ("Treadmill", "Pedometer"),
        "cycling": ("Bicycle", "Helmet"),
        "swimming": ("Goggles", "Swimsuit"),
        "weights": ("Dumbbell", "Barbell"),
    },
}

ADJECTIVES = (
    "Quiet",
    "Bright",
    "Floral",
    "Royal",
    "Compact",
    "Golden",
    "Swift",
    "Gentle",
    "Urban",
    "Nordic",
    "Smart",
    "Silver",
    "Fresh",
    "Solid",
    "Velvet",
    "Rapid",
    "Sunny",
    "Clever",
    "Prime",
    "Rustic",
    "Lunar",
    "Crisp",
    "Noble",
    "Vivid",
)
QUALITIES = (
    "quiet",
    "reliable",
    "light",
    "sturdy",
    "simple",
    "cheap",
    "elegant",
    "comfortable",
    "fast",
    "durable",
)
PERSONAS = ("beginner", "student", "parent", "commuter", "traveller", "nurse", "teacher", "designer")
CITIES = ("Oslo", "Lima", "Cairo", "Delhi", "Porto", "Kyoto", "Quito", "Turin", "Perth", "Accra")
INTERESTS = 3
"""Interests of a profile, where nothing tells how many."""


def basics(rng: random.Random) -> str:
    """The line about a drawn user: age, occupation, city."""
    return f"{rng.randrange(18, 80)} {rng.choice(PERSONAS)} {rng.choice(CITIES)}"


@cache
def theme_of(category: str) -> str:
    """The theme that ``category`` belongs to, or ``""`` for a category of another world."""
    return next((theme for theme, members in THEMES.items() if category in members), "")


@cache
def categories() -> tuple[str, ...]:
    """All category names, in the order of THEMES (50)."""
    return tuple(category for members in THEMES.values() for category in members)


@cache
def _by_word() -> dict[str, str]:
    words = {category: category for category in categories()}
    for members in THEMES.values():
        for category, nouns in members.items():
            words.update({noun.lower(): category for noun in nouns})
    return words


def category_of(text: str) -> str:
    """The category of the first word of ``text`` that names one, or ``""``."""
    words = _by_word()
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in words:
            return words[word]
    return ""
