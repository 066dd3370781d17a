"""FakeService: a process that behaves like a service of the stack, or misbehaves as its arguments say."""

import argparse
import signal
import socket
import sys
from pathlib import Path


def main() -> None:
    """Listen, then wait for SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--name")
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--ended-file", type=Path)
    args = parser.parse_args()
    if args.fail:
        print("no such model: unobtainium")
        sys.exit(3)

    def on_term(*_: object) -> None:
        if args.ended_file is not None:
            with args.ended_file.open("a") as file:
                file.write(f"{args.name}\n")
        sys.exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if args.ignore_term else on_term)
    print("serving", flush=True)
    with socket.create_server(("127.0.0.1", args.port)) as server:
        while True:
            server.accept()[0].close()


if __name__ == "__main__":
    main()
