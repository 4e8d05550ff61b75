"""Cache plans from a trace: what leaving steps out costs, the best plan of each size, other methods' numbers."""
