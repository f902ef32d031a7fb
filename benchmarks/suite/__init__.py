"""What the machine gives: both sides of every claim of speed in one process, and what is required of their ratio."""
