"""What every Paceline service starts with: gRPC bootstrap, config, errors, telemetry.

Where to look: `service` (process start and end), `server` and `channel` (the two ends of a hop), `errors` (one tree),
`config` (one YAML file), `telemetry` (traces and metrics).
"""
