"""Runs a command that dies with its parent: `python -I -S launch.py PARENT_PID COMMAND...`.

The supervisor cannot do this between fork and exec: it has gRPC threads, and code that runs there may deadlock. This
file is run by path, by a bare interpreter, and replaces itself: it costs some ten milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask the kernel for SIGKILL at the parent's death, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
