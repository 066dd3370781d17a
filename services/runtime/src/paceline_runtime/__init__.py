"""What every Paceline service starts with: gRPC bootstrap, config, errors, telemetry.

Where to look: `service` (process start and end), `server` and `channel` (the two ends of a hop), `errors` (one tree),
`config` (one YAML file), `telemetry` (traces and metrics).
"""

import os

# gRPC's core would write lines of its own format into our logs, one for each connection that a peer closes.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
