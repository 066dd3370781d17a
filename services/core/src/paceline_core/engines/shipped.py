"""Profiles by name, from the files beside this module, or by path. Simulated executor and simulator read the same."""

from importlib import resources
from pathlib import Path

import yaml

from paceline_core.engines.profile import Profile, UnknownProfileError, parse_profile


def profile_names() -> list[str]:
    """Profiles that ship with the package."""
    folder = resources.files(__package__) / "profiles"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_profile(name: str) -> Profile:
    """A shipped profile by name, or one from a YAML file by path. Raises UnknownProfileError."""
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise UnknownProfileError(f"cannot read the profile {name}: {error}") from error
    elif name in profile_names():
        text = (resources.files(__package__) / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UnknownProfileError(f"no profile {name!r}: choose {', '.join(profile_names())} or a .yaml file")
    try:
        numbers = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UnknownProfileError(f"profile {name} is not YAML: {error}") from error
    return parse_profile(Path(name).stem, numbers)
