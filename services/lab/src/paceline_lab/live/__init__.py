"""Open-loop load on a running stack, and how its answers are scored."""
