"""An engine that keeps time and makes up tokens: the same contract as a real one, hundreds in a process.

`profile` says how long a step takes, `language` what comes out, `engine` runs the steps, `driver` wakes many engines
from one event loop. Whatever it measures is simulated, and says so.
"""
