"""Traces and metrics: all names in `names`, providers in `setup`, trace context between processes in `propagation`."""
