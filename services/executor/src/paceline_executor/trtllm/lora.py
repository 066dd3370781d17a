"""LoRA adapters by name. The engine loads one when the first request that names it comes.

With one adapter the engine finds out by itself which modules adapters change; with several it has to be told, so that
is read from the adapters' own `adapter_config.json`.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from paceline_executor.trtllm.surface import surface

_MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "down_proj": "mlp_4h_to_h",
    "up_proj": "mlp_gate",
}
"""Names that adapters use to names that the engine uses."""


@dataclass(frozen=True)
class Adapter:
    """One adapter of an engine."""

    name: str
    number: int
    """Unique in the engine: its cache of adapters goes by it."""
    path: str


def adapters_of(folders: Mapping[str, str]) -> tuple[Adapter, ...]:
    """Adapters of name -> folder; numbers from 1 on, in the order of the names."""
    return tuple(Adapter(name, number, folders[name]) for number, name in enumerate(sorted(folders), 1))


def lora_config(api: ModuleType, adapters: Sequence[Adapter], on_gpu: int) -> Any:
    """The engine's LoraConfig. Raises ValueError for a folder without a readable `adapter_config.json`: the engine
    would say so at the first request only."""
    read = [_read(adapter) for adapter in adapters]
    fields: dict[str, Any] = {
        "max_lora_rank": max(rank for rank, _ in read),
        "max_loras": min(len(adapters), on_gpu),
        "max_cpu_loras": len(adapters),
    }
    if len(adapters) == 1:
        fields["lora_dir"] = [adapters[0].path]
    else:
        fields["lora_target_modules"] = sorted(set().union(*(modules for _, modules in read)))
    return lora_class(api, "LoraConfig")(**fields)


def lora_class(api: ModuleType, name: str) -> Any:
    """The class LoRARequest or LoraConfig: of `api` itself, or where the surface says. Raises ValueError."""
    found = getattr(api, name, None)
    if found is not None:
        return found
    homes = [path.removesuffix(".py").replace("/", ".") for path in surface().entry(name).files]
    for home in homes:
        try:
            return getattr(importlib.import_module(home), name)
        except (ImportError, AttributeError):
            continue
    raise ValueError(f"this build has no {name} in {', '.join(homes)}: it serves no LoRA adapters")


def _read(adapter: Adapter) -> tuple[int, set[str]]:
    """Rank and changed modules of an adapter."""
    path = Path(adapter.path) / "adapter_config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rank, names = int(document["r"]), list(document["target_modules"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"LoRA adapter {adapter.name}: {path}: {type(error).__name__}: {error}") from error
    unknown = sorted(set(names) - _MODULES.keys())
    if unknown:
        raise ValueError(
            f"LoRA adapter {adapter.name} changes {', '.join(unknown)}, which the engine does not"
        )
    return rank, {_MODULES[name] for name in names}
