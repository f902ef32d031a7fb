"""Where the quality of an example comes from: a column, rules over its text, a reward model, or LLM judges."""
