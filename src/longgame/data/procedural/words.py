"""Word lists shared by the generators; small enough for a 640-entry vocabulary to hold most of them whole."""

from __future__ import annotations

NAMES = (
    "Ana Ben Cara Dan Ella Finn Gita Hugo Ines Jack Kim Leo Mia Nora Omar Pia Quinn Rosa Sam Tara Uma Vic Wes Yara Zoe"
).split()
CITIES = "Oslo Rome Paris Lima Cairo Delhi Tokyo Dublin Vienna Boston Quito Riga".split()
JOBS = "baker pilot nurse farmer singer lawyer painter driver teacher sailor".split()
COLOURS = "red blue green black white yellow brown grey pink purple".split()
ADJECTIVES = "old new small large clean broken heavy empty round warm quiet bright".split()
THINGS = "lamp cup map boat door chair book clock box ladder basket window garden bottle mirror".split()
PLACES = "lake market station bridge school harbour museum hill library park".split()
GOODS = "apples pens coins books eggs stamps shells cards nuts bricks".split()
VERBS = {
    "walks": "walked",
    "hurries": "hurried",
    "runs": "ran",
    "goes": "went",
    "swims": "swam",
    "drives": "drove",
    "returns": "returned",
    "comes": "came",
}
"""Verbs of movement: present → past."""
ACTIONS = {
    "opens": "opened",
    "paints": "painted",
    "buys": "bought",
    "sells": "sold",
    "finds": "found",
    "takes": "took",
    "breaks": "broke",
    "cleans": "cleaned",
    "sees": "saw",
    "makes": "made",
}
"""Verbs with an object: present → past."""
KINDS = {
    "fruit": "apple pear plum cherry melon mango lemon grape".split(),
    "tools": "hammer saw drill wrench pliers chisel axe file".split(),
    "animals": "horse tiger rabbit camel otter goat zebra mouse".split(),
    "metals": "iron copper silver gold zinc lead nickel tin".split(),
    "clothes": "shirt scarf glove coat sock hat belt shoe".split(),
    "instruments": "violin flute drum piano harp trumpet cello guitar".split(),
}
CODE_WORDS = (
    "lantern marble pocket silver orange planet garden window bridge castle market pencil rocket velvet".split()
)
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
EVENTS = "talk lunch run game lesson dinner concert walk test meeting swim film".split()
