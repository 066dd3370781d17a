"""What a llama.cpp engine says of itself."""

from paceline_executor.contract import Capabilities, PauseMode, PlanGranularity, ReplayMode
from paceline_executor.llamacpp.binding import PINNED_PACKAGE, PINNED_VERSION
from paceline_executor.llamacpp.config import LlamaCppConfig
from paceline_executor.llamacpp.context import KV_TYPE, Context
from paceline_executor.llamacpp.model import Model

_TYPICAL_TOKENS = 512
"""KV moved when one sequence takes another's place in the run set: two of 256 tokens."""


def describe(config: LlamaCppConfig, model: Model, context: Context) -> Capabilities:
    """The capabilities. Measures what moving KV costs: ask before anything runs."""
    return Capabilities(
        model=config.model_name or config.model_path.stem,
        model_hash=model.sha256,
        tokenizer_id=model.tokenizer_id,
        chat_template=model.chat_template or "",
        bos_token=model.token_text(model.bos_token_id),
        eos_token=model.token_text(model.eos_token_id),
        backend="llamacpp",
        build=f"{PINNED_PACKAGE}-{PINNED_VERSION}",
        device="cpu",
        speed_factor=config.speed_factor,
        plan_granularity=PlanGranularity.ITERATION,
        pause_modes=(PauseMode.KEEP_KV, PauseMode.RECOMPUTE),
        run_set_change_cost_ms=_TYPICAL_TOKENS * context.move_cost.ms_per_token,
        max_batch=config.max_batch,
        max_resident=config.max_resident,
        max_context_tokens=config.context_tokens,
        kv_capacity_tokens=config.max_resident * config.context_tokens,
        kv_bytes_per_token=context.move_cost.bytes_per_token,
        # Without flash attention values are kept transposed.
        kv_type=KV_TYPE if config.threads == 1 else f"{KV_TYPE} transposed",
        prefill_chunk_tokens=config.chunk_tokens,
        kv_transfer=True,
        prefix_reuse=config.prefix_reuse,
        replay_modes=(ReplayMode.EXACT, ReplayMode.FAST),
        vocab_size=model.vocab_size,
    )
