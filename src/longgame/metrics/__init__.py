"""Metrics of an audit: array functions, the catalog that names them, and the scorecard made of them.

``matrix`` (R) · ``longhorizon`` (curves, eq. 2, eq. 3) · ``diagnostics`` (eq. 4, drift, association with forgetting) ·
``stats`` (over seeds) · ``tidy`` (records → arrays) · ``catalog`` (every metric, named once) · ``scorecard`` (tables) ·
``verdict`` (words) · ``comparisons`` (interventions, conditions) · ``efficiency`` (PIR, SDF, feasibility).
"""
