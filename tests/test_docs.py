"""What the documents say is there: links, commands, code."""

import re
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from paceline_cli.app import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not (document.parent / target).exists()]
    assert not missing


def test_the_readme_begins_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line.split()[:2] for line in lines[:8] if line.startswith("make ")]
    assert commands == [["make", "serve"], ["make", "test"]]


def test_the_readme_shows_the_tested_back_end() -> None:
    code = (ROOT / "tests" / "backend_example.py").read_text().split('"""\n', 2)[-1].strip()
    assert code in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(document: Path) -> None:
    """Every `paceline ...` in a code block or span is a command with those options."""
    root = get_command(app)
    text = document.read_text()
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL) + re.findall(
        r"`(paceline [^`]+)`", text
    )
    for line in "\n".join(blocks).splitlines():
        match = re.match(r"\s*(?:\S*/)?paceline ([a-z].*?)(?:\s+#.*)?$", line)
        if match is None:
            continue
        words = match.group(1).split()
        command, path = root, []
        while words and hasattr(command, "commands") and words[0] in command.commands:
            path.append(words.pop(0))
            command = command.commands[path[-1]]
        assert path, f"no such command: {line.strip()}"
        shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        for option in re.findall(r"(?<!\S)--[a-z-]+", " ".join(words)):
            assert option in shown, f"{' '.join(path)} has no {option}: {line.strip()}"
