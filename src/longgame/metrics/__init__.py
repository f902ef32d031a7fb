"""Pure NumPy functions of the score matrix, the curves and the sketches, and the scorecard made of them.

``matrix`` (R) · ``curves`` (adaptation) · ``longhorizon`` (eq. 2) · ``ranking`` (eq. 3) · ``diagnostics`` (eq. 4) ·
``drift`` (adapters) · ``association`` (diagnostics with forgetting) · ``stats`` (over seeds) · ``interventions`` ·
``verdict`` (words) · ``tidy`` → ``summary`` → ``scorecard`` (tables) · ``catalog`` (names, units, which way is better).
"""
