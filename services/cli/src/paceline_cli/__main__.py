"""Entry point of the `paceline` command."""

from paceline_cli.app import app
from paceline_cli.errors import run_app


def main() -> None:
    """Run the command line."""
    run_app(app)


if __name__ == "__main__":
    main()
