"""What the signals are measured against: the published ways, written from their formulas, and a library of today.

Each module runs in the benchmark's process, on the same model and the same `longgame.data.examples.Pool`, and returns
rows in the pool's order. None of them is part of the package.
"""
