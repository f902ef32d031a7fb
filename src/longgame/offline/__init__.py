"""Data selection before training: check data, score it, and write a subset of it."""
