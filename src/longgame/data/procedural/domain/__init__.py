"""Five domains as small closed worlds: every fact that an answer needs stands in the prompt."""
