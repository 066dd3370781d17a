"""Holds Python sources against the surface by reading them. Nothing is imported: no GPU, no package is needed."""

import ast
import functools
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from paceline_executor.trtllm.surface import Entry, Surface, surface


class Verdict(Enum):
    """What became of one name."""

    OK = "ok"
    ABSENT = "absent"
    """Missing, and Paceline does without."""
    DIFFERS = "differs"
    """Missing or other than it must be."""


@dataclass(frozen=True)
class Check:
    """One name of the surface against one tree of sources."""

    entry: str
    verdict: Verdict
    found: str
    private: bool


def check_sources(root: Path, wanted: Surface | None = None) -> list[Check]:
    """Every entry of the surface against the sources below `root` (the folder that holds `tensorrt_llm/`)."""
    return [check for entry in (wanted or surface()).entries for check in _check(entry, root)]


def _check(entry: Entry, root: Path) -> list[Check]:
    trees = [tree for name in entry.files if (tree := _parse(root / name)) is not None]
    if not trees:
        return [_verdict(entry, "", Verdict.DIFFERS, f"no file {' or '.join(entry.files)}")]
    if entry.constant:
        present = any(_assigns(tree, entry.constant) for tree in trees)
        return [_present(entry, entry.constant, present, "constant")]
    classes = [found for tree in trees for name in entry.owners if (found := _class(tree, name))]
    if not classes:
        return [_verdict(entry, "", Verdict.DIFFERS, f"no class {' or '.join(entry.owners)}")]
    if entry.method:
        functions = [method for owner in classes if (method := _function(owner, entry.method))]
        return _parameters(entry, functions[0] if functions else None)
    if entry.property_name:
        return [
            _present(entry, entry.property_name, any(_function(c, entry.property_name) for c in classes), "")
        ]
    everything = [cls for tree in trees for cls in ast.walk(tree) if isinstance(cls, ast.ClassDef)]
    names = {name for owner in classes for name in _names(owner, everything)}
    return [_present(entry, name, name in names, "field") for name in (*entry.fields, *entry.attributes)]


def _parameters(entry: Entry, function: ast.FunctionDef | ast.AsyncFunctionDef | None) -> list[Check]:
    if function is None:
        return [_verdict(entry, "", Verdict.DIFFERS, f"no method {entry.method}")]
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    defaults: dict[str, str] = {arg.arg: "required" for arg in (*positional, *arguments.kwonlyargs)}
    for arg, default in zip(reversed(positional), reversed(arguments.defaults), strict=False):
        defaults[arg.arg] = ast.unparse(default)
    for arg, kw_default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        defaults[arg.arg] = "required" if kw_default is None else ast.unparse(kw_default)
    known = dict(entry.constants)
    checks = [
        _verdict(entry, name, Verdict.DIFFERS, "a new parameter without a default")
        for name, default in defaults.items()
        if default == "required" and name not in dict(entry.parameters)
    ]
    for name, wanted in entry.parameters:
        written = defaults.get(name)
        if written is None:
            checks.append(_present(entry, name, arguments.kwarg is not None, "parameter"))
        elif known.get(written, written) == wanted:
            checks.append(_verdict(entry, name, Verdict.OK, written))
        else:
            checks.append(_verdict(entry, name, Verdict.DIFFERS, f"default {written}, not {wanted}"))
    return checks or [_verdict(entry, "", Verdict.OK, "method")]


def _present(entry: Entry, name: str, present: bool, kind: str) -> Check:
    if present:
        return _verdict(entry, name, Verdict.OK, kind or "property")
    return _verdict(
        entry, name, Verdict.ABSENT if name in entry.optional else Verdict.DIFFERS, "not in the sources"
    )


def _verdict(entry: Entry, name: str, verdict: Verdict, found: str) -> Check:
    title = entry.name if not name or name == entry.constant else f"{entry.name}: {name}"
    return Check(title, verdict, found, entry.private)


@functools.lru_cache(maxsize=64)
def _read(path: Path, _modified_ns: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _parse(path: Path) -> ast.Module | None:
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else None


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name), None)


def _function(owner: ast.ClassDef, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    return None


def _names(owner: ast.ClassDef, classes: list[ast.ClassDef]) -> set[str]:
    """Fields in the body, attributes set on `self`, and those of bases in the same files."""
    names: set[str] = set()
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    for inner in ast.walk(owner):
        if (
            isinstance(inner, ast.Attribute)
            and isinstance(inner.value, ast.Name)
            and inner.value.id == "self"
        ):
            names.add(inner.attr)
    bases = {base.id for base in owner.bases if isinstance(base, ast.Name)}
    for base in classes:
        if base.name in bases and base is not owner:
            names |= _names(base, classes)
    return names


def _assigns(tree: ast.Module, name: str) -> bool:
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return True
    return False
