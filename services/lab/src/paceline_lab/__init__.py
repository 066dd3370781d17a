"""Workloads, live load, simulation, benchmarks and reports."""
