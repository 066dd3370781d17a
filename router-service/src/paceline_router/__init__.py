"""Chooses the engine for each request and keeps its token stream exactly once."""
