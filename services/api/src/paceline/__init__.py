"""Generated gRPC and protobuf stubs of Paceline (paceline.*.v1)."""
