"""The injected crash: off by default, and then nothing but the marked prompt brings the process down."""

import signal
import subprocess
import sys

SCRIPT = """
import sys
from pathlib import Path
from paceline_executor.contract import AttemptSpec, Plan
from paceline_executor.llamacpp import LlamaCppConfig, LlamaCppEngine

def run(prompt):
    engine.add(AttemptSpec(1, "r", 5, prompt_text=prompt))
    engine.set_plan(Plan(1, (1,)))
    while not any(row.ended for row in engine.live_table()):
        engine.events.wait(1.0)
        engine.events.drain()
    engine.release(1)

marker = sys.argv[2] or None
engine = LlamaCppEngine(LlamaCppConfig(Path(sys.argv[1]), context_tokens=256, fault_abort_marker=marker))
run("harmless")
print("survived the harmless one", flush=True)
run("this is POISON indeed")
print("survived", flush=True)
engine.close()
"""


def run(model, marker: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), marker],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_marked_prompt_aborts_the_process_when_it_decodes(tiny_model) -> None:
    done = run(tiny_model, "POISON")
    assert done.returncode == -signal.SIGABRT
    assert done.stdout.splitlines() == ["survived the harmless one"]


def test_without_the_setting_nothing_aborts(tiny_model) -> None:
    done = run(tiny_model, "")
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["survived"]), done.stderr
