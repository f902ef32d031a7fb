"""Algorithms that selection methods share."""
