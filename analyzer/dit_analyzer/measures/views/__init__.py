"""What earlier caching papers plotted, from a trace: one function per view, named after its method."""
