"""What the benchmarks measure; `paceline bench` starts the processes around it."""
