"""Forecasts of compound tasks, and patterns learned from those that ended."""
