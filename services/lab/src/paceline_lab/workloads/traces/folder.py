"""Where a public trace lies."""

from pathlib import Path


def trace_file(data: Path | None, workload: str, source: str, folder: str, name: str) -> Path:
    """The file `name` in `data` or in its subfolder `folder`.

    Raises ValueError that says what to fetch when `data` is not given or does not hold it.
    """
    if data is None:
        raise ValueError(f"{workload} replays a public trace: fetch {source} and name its folder with --data")
    for path in (data / folder / name, data / name):
        if path.is_file():
            return path
    raise ValueError(
        f"{workload} needs {folder}/{name} in {data}: fetch {source} and name its folder with --data"
    )
