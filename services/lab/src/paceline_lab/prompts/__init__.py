"""Prompts written for this project: what live load is made of."""
