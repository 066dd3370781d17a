"""What every Paceline service starts with: gRPC bootstrap, config, errors, telemetry."""
