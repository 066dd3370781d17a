"""Entry point of the `paceline` command."""

import sys


def main() -> None:
    """Say that no command exists yet."""
    sys.exit("paceline: no command is implemented yet")


if __name__ == "__main__":
    main()
