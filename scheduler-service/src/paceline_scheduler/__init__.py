"""Chooses which requests run next on one engine."""
