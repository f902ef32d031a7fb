"""Names of the domains' worlds; short, because the tiny base's vocabulary writes new words in pieces."""

from __future__ import annotations

from longgame.data.procedural.words import words

LANDS = words("Arda Borna Cela Dova Esta Fira Gora Hela Ista Jora")
"""Lands and firms that do not exist, so that nothing can be known about them but what is said."""
SUBSTANCES = words("iron zinc salt sugar lead copper gold silver")
SIGNS = words("fever cough rash pain cramp itch chill sneeze")
ILLNESSES = words("flu cold gout mumps croup ulcer")
TOPICS = words("rent noise pets bills keys heat paint guests repairs deposit")
"""What a clause of a contract is about."""
ITEMS = words("sales costs tax debt cash stock wages loans")
"""Lines of an account."""
ANIMALS = words("fox hen worm cat mouse owl frog fly hawk snake rat bee")
