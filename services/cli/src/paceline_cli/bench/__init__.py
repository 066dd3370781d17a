"""Starts the private stacks that the benchmarks measure."""
