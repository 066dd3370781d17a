"""The local stack: what `paceline up` starts, watches and stops."""
