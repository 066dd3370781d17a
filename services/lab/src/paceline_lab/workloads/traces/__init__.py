"""Readers of public traces, one a module: arrivals, lengths and shared prefixes from a folder that the user names."""
