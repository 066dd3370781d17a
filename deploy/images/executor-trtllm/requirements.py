"""Prints the locked versions of what the executor's members name, less what the vendor's image brings itself.

Usage: requirements.py LOCK PYPROJECT...   Dependencies of dependencies are pip's to find.
"""

import re
import sys
import tomllib
from pathlib import Path

OF_THE_VENDOR = frozenset({"numpy", "onnxruntime", "torch", "transformers", "xllamacpp"})
"""Left as the image has them; llama.cpp is not used there."""
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_NAME = re.compile(r"^[A-Za-z0-9._-]+")


def plain(name: str) -> str:
    """A name as registries compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(lock: str, projects: list[str]) -> list[str]:
    """`name==version` of each dependency, in order of names. Raises KeyError for one that is not locked."""
    pins = {plain(name): version for name, version in _PIN.findall(lock)}
    members, names = set(), set()
    for text in projects:
        project = tomllib.loads(text)["project"]
        members.add(plain(project["name"]))
        for dependency in project.get("dependencies", []):
            found = _NAME.match(dependency)
            if found:
                names.add(plain(found.group()))
    outside = sorted(name for name in names - members - OF_THE_VENDOR if not name.startswith("paceline-"))
    return [f"{name}=={pins[name]}" for name in outside]


if __name__ == "__main__":
    texts = [Path(path).read_text(encoding="utf-8") for path in sys.argv[1:]]
    print("\n".join(wanted(texts[0], texts[1:])))
