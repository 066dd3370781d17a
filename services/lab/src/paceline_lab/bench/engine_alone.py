"""The engine driven in process, without any of the line: `python -m paceline_lab.bench.engine_alone CONFIG_JSON`.

Reads one job a line on standard input, `{"prompts": [...], "max_tokens": n}`, runs all prompts at once, and answers
one line, `{"ttft_ms": [...], "tokens": [...], "seconds": s}`. Between jobs it sleeps: it can stay loaded while others
are measured.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from paceline_executor.app import build_engine
from paceline_executor.config import ExecutorConfig
from paceline_executor.contract import AttemptEnded, AttemptSpec, Engine, Plan, StepReport

_EVENT_WAIT_S = 60.0


class Alone:
    """Runs jobs on one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next_key = 1
        self._next_plan = 1

    def run(self, prompts: Sequence[str], max_tokens: int) -> dict[str, Any]:
        """All prompts at once, greedy; blocks until the last answer has ended."""
        keys = list(range(self._next_key, self._next_key + len(prompts)))
        self._next_key += len(prompts)
        first_ms: dict[int, float] = {}
        tokens = dict.fromkeys(keys, 0)
        open_keys = set(keys)
        began = time.perf_counter()
        for key, prompt in zip(keys, prompts, strict=True):
            self._engine.add(AttemptSpec(key, f"alone-{key}", max_tokens, prompt_text=prompt))
        self._engine.set_plan(Plan(self._next_plan, tuple(keys)))
        self._next_plan += 1
        while open_keys:
            if not self._engine.events.wait(_EVENT_WAIT_S):
                raise TimeoutError(f"the engine said nothing for {_EVENT_WAIT_S:.0f} s")
            now_ms = (time.perf_counter() - began) * 1000
            for event in self._engine.events.drain():
                if isinstance(event, StepReport):
                    for key, count in zip(event.tokens.attempt_keys, event.tokens.counts, strict=True):
                        first_ms.setdefault(int(key), now_ms)
                        tokens[int(key)] += int(count)
                elif isinstance(event, AttemptEnded):
                    if event.error_reason:
                        raise RuntimeError(f"{event.error_reason}: {event.message}")
                    open_keys.discard(event.attempt_key)
        seconds = time.perf_counter() - began
        for key in keys:
            self._engine.release(key)
        return {
            "ttft_ms": [first_ms[key] for key in keys],
            "tokens": list(tokens.values()),
            "seconds": seconds,
        }


def main() -> None:
    """Serve jobs from standard input until it ends."""
    engine = asyncio.run(build_engine(ExecutorConfig.model_validate_json(sys.argv[1])))
    alone = Alone(engine)
    print(json.dumps({"ready": True}), flush=True)
    try:
        for line in sys.stdin:
            job = json.loads(line)
            print(json.dumps(alone.run(job["prompts"], job["max_tokens"])), flush=True)
    finally:
        engine.close()


if __name__ == "__main__":
    main()
