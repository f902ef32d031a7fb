"""One file per method: mathematics only. A selector sees signals, history, a token budget and a generator."""
