"""Generate the Python stubs of every proto here, or check that the committed ones are current.

Run by `make protos` and `make protos-check` with the interpreter of .venv-protos.
"""

import argparse
import sys
import tempfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Write stubs of all protos under `out`, the folder of the `paceline` package."""
    sources = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / "paceline").rglob("*.proto"))
    if not sources:
        sys.exit("no .proto file found under protos/paceline")
    includes = [PROTOS, Path(str(files("grpc_tools") / "_proto")), _google_rpc_root()]
    root = out.parent
    root.mkdir(parents=True, exist_ok=True)
    scripts = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            *(f"-I{path}" for path in includes),
            *(f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
            f"--python_out={root}",
            f"--grpc_python_out={root}",
            f"--mypy_out=quiet:{root}",
            f"--mypy_grpc_out=quiet,only_async:{root}",
            *sources,
        ]
    )
    if status != 0:
        sys.exit(status)
    for folder in {out / Path(source).parent.relative_to("paceline") for source in sources}:
        for package in (folder, folder.parent):
            (package / "__init__.py").touch()


def _google_rpc_root() -> Path:
    """The folder of the googleapis-common-protos package that holds google/rpc/*.proto."""
    for entry in metadata.files("googleapis-common-protos") or []:
        if entry.as_posix() == "google/rpc/status.proto":
            return Path(str(entry.locate())).parents[2]
    sys.exit("googleapis-common-protos has no google/rpc/status.proto")


def _snapshot(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for glob in GENERATED for p in out.rglob(glob)}


def replace(out: Path) -> None:
    """Generate into `out`, and remove stubs whose proto is gone."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "paceline"
        generate(fresh)
        stubs = _snapshot(fresh)
        packages = [p.relative_to(fresh) for p in fresh.rglob("__init__.py")]
    for stale in _snapshot(out).keys() - stubs.keys():
        (out / stale).unlink()
    for name, content in stubs.items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != content:
            target.write_bytes(content)
    for package in packages:
        (out / package).touch()


def check(out: Path) -> None:
    """Exit with the names of the stubs that differ from what the protos give."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "paceline"
        generate(fresh)
        want, have = _snapshot(fresh), _snapshot(out)
    differing = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
    if differing:
        sys.exit("stubs differ from protos/ (run `make protos`): " + ", ".join(differing))
    print(f"{len(want)} stubs are current")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("out", type=Path, help="folder of the `paceline` package")
    args = parser.parse_args()
    (check if args.check else replace)(args.out.resolve())


if __name__ == "__main__":
    main()
