"""Word lists shared by the generators; small enough for a 640-entry vocabulary to hold most of them whole."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


def _pairs(text: str) -> dict[str, str]:
    """Return ``a:b c:d`` as a mapping."""
    return {left: right for left, _, right in (pair.partition(":") for pair in text.split())}


NAMES = words(
    "Ana Ben Cara Dan Ella Finn Gita Hugo Ines Jack Kim Leo Mia Nora Omar Pia Quinn Rosa Sam Tara Uma Vic Wes Yara Zoe"
)
CITIES = words("Oslo Rome Paris Lima Cairo Delhi Tokyo Dublin Vienna Boston Quito Riga")
JOBS = words("baker pilot nurse farmer singer lawyer painter driver teacher sailor")
COLOURS = words("red blue green black white yellow brown grey pink purple")
ADJECTIVES = words("old new small large clean broken heavy empty round warm quiet bright")
THINGS = words("lamp cup map boat door chair book clock box ladder basket window garden bottle mirror")
PLACES = words("lake market station bridge school harbour museum hill library park")
GOODS = words("apples pens coins books eggs stamps shells cards nuts bricks")
VERBS = _pairs("walks:walked hurries:hurried runs:ran goes:went swims:swam drives:drove returns:returned comes:came")
"""Verbs of movement: present → past."""
ACTIONS = _pairs(
    "opens:opened paints:painted buys:bought sells:sold finds:found takes:took breaks:broke cleans:cleaned "
    "sees:saw makes:made"
)
"""Verbs with an object: present → past."""
KINDS = {
    "fruit": words("apple pear plum cherry melon mango lemon grape"),
    "tools": words("hammer saw drill wrench pliers chisel axe file"),
    "animals": words("horse tiger rabbit camel otter goat zebra mouse"),
    "metals": words("iron copper silver gold zinc lead nickel tin"),
    "clothes": words("shirt scarf glove coat sock hat belt shoe"),
    "instruments": words("violin flute drum piano harp trumpet cello guitar"),
}
CODE_WORDS = words(
    "lantern marble pocket silver orange planet garden window bridge castle market pencil rocket velvet "
    "cherry lemon hammer wrench tiger rabbit camel copper nickel scarf glove violin flute trumpet guitar"
)
WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
EVENTS = words("talk lunch run game lesson dinner concert walk test meeting swim film")
