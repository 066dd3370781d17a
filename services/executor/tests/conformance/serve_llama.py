"""llama.cpp's own HTTP server, which its binding brings: `python serve_llama.py MODEL` tells its address, and serves
until stdin ends."""

import sys

import xllamacpp

_SLOTS = 8
_CONTEXT_TOKENS = 1024


def main() -> None:
    """Serve until stdin ends."""
    settings = xllamacpp.CommonParams()
    settings.model.path = sys.argv[1]
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.n_parallel = _SLOTS
    settings.n_ctx = _SLOTS * _CONTEXT_TOKENS
    settings.warmup = False
    # More threads than free cores make every step slow.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
