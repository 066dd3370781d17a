"""Predicts how long answers get and how many calls a task still makes."""
