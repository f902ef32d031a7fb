"""Calibration: the audit's verdicts in a world where the true long-horizon effect of a selector is known.

``walks`` (what selectors pick, from the real protocol on the quadratic world) → ``ensemble`` (many seeds of such walks
at once, and their true mean in closed form) → ``table`` → ``study`` (false alarms, power, coverage) and ``families``
(leaderboards, equivalence, seeds that share bases) → ``charts``.
"""
