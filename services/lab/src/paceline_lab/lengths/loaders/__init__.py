"""Readers of the public sets, by name. Each yields examples; a file that is not there raises FileNotFoundError."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paceline_lab.lengths.example import Example
from paceline_lab.lengths.loaders import agents, code, instructions, lengths_only, maths, tools


@dataclass(frozen=True, slots=True)
class Loader:
    """One set."""

    read: Callable[[Path], Iterator[Example]]
    """Examples in the set's folder."""
    home: str
    """Where the public source is."""


TRAINING: Final[dict[str, Loader]] = {
    "arena-hard": Loader(instructions.arena_hard, "github.com/lm-sys/arena-hard-auto (data/arena-hard-v0.1)"),
    "self-instruct-eval": Loader(
        instructions.self_instruct, "github.com/yizhongw/self-instruct (human_eval/predictions)"
    ),
    "gsm8k": Loader(maths.gsm8k, "github.com/openai/grade-school-math (example_model_solutions.jsonl)"),
    "code-responses": Loader(code.reflexion, "github.com/noahshinn/reflexion (programming_runs/root)"),
    "lmcache-agent-trace": Loader(agents.lmcache, "github.com/LMCache/lmcache-agent-trace"),
    "tau-bench": Loader(
        agents.tau_bench, "github.com/sierra-research/tau-bench (historical_trajectories/gpt-4o-airline.json)"
    ),
}
"""Sets with texts that models are trained on."""

MEASURING: Final[dict[str, Loader]] = {
    "bfcl-toolcalls": Loader(
        tools.bfcl, "package bfcl-eval (prompts), github.com/HuanzhiMao/BFCL-Result (answers)"
    ),
    "text-to-sql": Loader(
        tools.text_to_sql, "github.com/ShayanTalaei/CHESS (data/dev), github.com/AlibabaResearch/DAMO-ConvAI"
    ),
    "leetcode-responses": Loader(code.leetcode, "github.com/noahshinn/reflexion (programming_runs/root)"),
}
"""Sets with texts whose licence does not allow, or does not clearly allow, training on them."""

WITHOUT_TEXT: Final[dict[str, Loader]] = {
    "wildbench": Loader(lengths_only.wildbench, "github.com/allenai/WildBench (eval_results)"),
    "lmsys": Loader(lengths_only.lmsys, "github.com/James-QiuHaoran/LLM-serving-with-proxy-models"),
    "sharegpt": Loader(
        lengths_only.sharegpt, "github.com/microsoft/sarathi-serve (niyama_asplos2026, processed_traces)"
    ),
    "alpaca": Loader(lengths_only.alpaca, "github.com/zhengzangw/Sequence-Scheduling"),
    "arxiv": Loader(lengths_only.arxiv, "github.com/microsoft/vidur (data/processed_traces)"),
}
"""Sets of numbers: for calibration and for marginal lengths, not for models of texts."""

FOLDERS: Final = {
    "leetcode-responses": "code-responses",
    **dict.fromkeys(("wildbench", "lmsys", "sharegpt", "alpaca", "arxiv"), "length-samples"),
}
"""Folder of a set where it has another name."""
