"""Runs a cache plan for real, beside the uncached model and other ways to save as much."""
