"""Paceline: a control plane for LLM serving. The `paceline` command."""
