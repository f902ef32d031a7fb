"""The closed-form world, where the true effect of a selection is known."""
