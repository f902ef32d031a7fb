"""Proposition 1 and the concentration corollary, proved on the quadratic world."""
