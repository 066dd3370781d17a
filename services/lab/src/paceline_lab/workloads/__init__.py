"""Workloads for the simulator: what arrives when, with lengths, graphs and objectives, and no text."""
