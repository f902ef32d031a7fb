"""The project's own results: which recipes are run, what is kept of them, and the pages made from that."""
