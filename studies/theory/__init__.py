"""The quadratic world, where the true long-term effect of a selection is known."""
