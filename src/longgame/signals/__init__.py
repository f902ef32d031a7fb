"""Everything that costs model time: one pass computes the union of the signals that are asked for."""
