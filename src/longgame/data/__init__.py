"""Examples, sources, sequences and token budgets: everything that is known before a model is asked."""
