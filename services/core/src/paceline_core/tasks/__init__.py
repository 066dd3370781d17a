"""Compound tasks: pattern graphs, prefix matching, and forecasts of what a task still needs."""
