"""Where the public data sets come from, for whoever starts without them."""

LICENCES = {
    "arena-hard": "Apache-2.0",
    "self-instruct-eval": "Apache-2.0",
    "gsm8k": "MIT",
    "code-responses": "MIT (problems: HumanEval MIT, MBPP CC BY 4.0)",
    "lmcache-agent-trace": "Apache-2.0",
    "tau-bench": "MIT",
    "collected": "our own outputs, Apache-2.0",
}
"""Licences of the sets that models are trained on."""

_SETS = """\
It holds a folder for each set; a set that is not there is left out and named. Published at github.com:

  arena-hard           lm-sys/arena-hard-auto, data/arena-hard-v0.1      Apache-2.0   answers.jsonl.xz
  self-instruct-eval   yizhongw/self-instruct, human_eval/predictions    Apache-2.0   predictions.jsonl.xz
  gsm8k                openai/grade-school-math                          MIT          test_4models.jsonl.xz
  code-responses       noahshinn/reflexion, programming_runs             MIT          reflexion_code.jsonl.xz
  lmcache-agent-trace  LMCache/lmcache-agent-trace                       Apache-2.0   calls_text.jsonl.xz
  tau-bench            sierra-research/tau-bench, historical_trajectories MIT         gpt4o_airline_text.jsonl.xz
  bfcl-toolcalls       HuanzhiMao/BFCL-Result, prompts from bfcl-eval    lengths are measured on, never trained on

docs/prediction.md says how the files are laid out."""


def how_to_obtain(what: str) -> str:
    """What `paceline train` and `paceline eval` need under --data, and where it is published."""
    lead = f"The public data sets for {what} models are not part of this repository; name their folder: --data DIR."
    return f"{lead}\n{_SETS}"
