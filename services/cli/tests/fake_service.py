"""FakeService: a process that behaves like a service of the stack, or misbehaves as its arguments say."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    """Write the ready file, then wait for SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-file", type=Path)
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
                file.write(f"{args.ready_file.stem}\n")
        sys.exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if args.ignore_term else on_term)
    print("serving", flush=True)
    partial = args.ready_file.with_suffix(".partial")
    partial.write_text("127.0.0.1:1")
    os.replace(partial, args.ready_file)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
