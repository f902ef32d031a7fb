"""Scorers of a model on a task: token accuracy, likelihood, exact match by generation, multiple choice."""
