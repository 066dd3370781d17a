"""What no policy can exceed: a fluid bound for whole traces, an exact solver for tiny ones."""
