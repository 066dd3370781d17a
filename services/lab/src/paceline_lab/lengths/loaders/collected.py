"""Our own outputs of an embedded model, joined with the public prompts they answer."""

from pathlib import Path

from paceline_lab.lengths.collect.outputs import read_outputs
from paceline_lab.lengths.collect.prompts import Prompt, load_prompts
from paceline_lab.lengths.example import SMOLLM_SYSTEM, Example, chatml, head_and_tail
from paceline_lab.lengths.loaders.agents import LMCACHE, lmcache_sessions
from paceline_lab.lengths.loaders.reading import shared_weights
from paceline_predictor.model import LengthQuestion

SOURCE = "collected"


def collected(path: Path, data: Path) -> tuple[list[Example], int]:
    """Examples, and how many outputs answer prompts that are not in `data`. Raises FileNotFoundError, ValueError."""
    prompts = {prompt.prompt_id: prompt for prompt in load_prompts(data).prompts}
    outputs = [output for output in read_outputs(path) if output.output_tokens or not output.censored]
    sessions = lmcache_sessions(data / LMCACHE) if any(o.source == LMCACHE for o in outputs) else {}
    weights = shared_weights(output.prompt_id for output in outputs)
    known = [(output, prompts[output.prompt_id]) for output in outputs if output.prompt_id in prompts]
    examples = [
        Example(
            LengthQuestion(
                model=output.model,
                app=prompt.family,
                prompt_head=(parts := head_and_tail(_sent(prompt)))[0],
                prompt_tail=parts[1],
                prompt_tokens=output.prompt_tokens,
                max_tokens=output.max_tokens,
                temperature=output.temperature,
            ),
            max(1, output.output_tokens),
            output.censored,
            SOURCE,
            prompt.family,
            sessions.get(output.prompt_id, output.prompt_id),
            weights[output.prompt_id],
            output.output,
        )
        for output, prompt in known
    ]
    return examples, len(outputs) - len(known)


def _sent(prompt: Prompt) -> str:
    return chatml([("system", SMOLLM_SYSTEM), ("user", prompt.text)])
