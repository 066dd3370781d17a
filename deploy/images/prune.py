"""Prints the installed packages that none of the services needs, for the image to be rid of them."""

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SERVICES = (
    "paceline-gateway",
    "paceline-router",
    "paceline-predictor",
    "paceline-scheduler",
    "paceline-executor",
)
KEPT = frozenset({"pip"})


def needed(roots: Iterable[str]) -> set[str]:
    """Names of the installed packages that `roots` lead to, extras that are asked for included.

    Raises PackageNotFoundError when a dependency is not installed.
    """
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            below = map(Requirement, requires(name) or ())
            waiting += [r for r in below if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def unneeded() -> Iterator[str]:
    """Names of installed packages that no service leads to, sorted."""
    installed = {canonicalize_name(distribution.metadata["Name"]) for distribution in distributions()}
    yield from sorted(installed - needed(SERVICES) - KEPT)


if __name__ == "__main__":
    try:
        print(*unneeded(), sep="\n")
    except PackageNotFoundError as error:
        raise SystemExit(f"not installed: {error.name}") from None
