"""Writes a tiny random model, so that tests run the real engine without a download.

A llama of 64 x 2 layers with byte-level tokens: any text goes in and comes back unchanged, answers are noise. Its
matrices are Q4_0 like the default model's, because schedule-invariant answers hold for those kernels, not for F16.
"""

import os
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

WIDTH = 64
LAYERS = 2
HEADS = 4
KV_HEADS = 2
FEED_FORWARD = 192
CONTEXT_TOKENS = 4096
END_TOKEN = "<|endoftext|>"
TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_symbols() -> list[str]:
    """One printable character per byte value: the alphabet GPT-2's byte-level vocabulary is written in."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {value: chr(value) for value in plain}
    others = (value for value in range(256) if value not in symbols)
    symbols.update({value: chr(256 + offset) for offset, value in enumerate(others)})
    return [symbols[value] for value in range(256)]


def write_tiny_model(path: Path, *, seed: int = 0, layers: int = LAYERS) -> Path:
    """Write the model to `path` (atomically) and return it. Equal arguments give equal bytes."""
    rng = np.random.default_rng(seed)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name(f"paceline-tiny-{seed}-{layers}")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    _add_vocabulary(writer)
    _add_weights(writer, rng, layers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)
    return path


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    symbols = byte_symbols()
    # llama.cpp wants at least one merge, and drops text silently if the merge names a token that is not there.
    merged = symbols[ord("t")] + symbols[ord("h")]
    special = [END_TOKEN, *TURN_TOKENS]
    kinds = [gguf.TokenType.NORMAL] * (len(symbols) + 1) + [gguf.TokenType.CONTROL] * len(special)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*symbols, merged, *special])
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{symbols[ord('t')]} {symbols[ord('h')]}"])
    end = len(symbols) + 1
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end + 2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_weights(writer: gguf.GGUFWriter, rng: np.random.Generator, layers: int) -> None:
    vocabulary = 256 + 1 + 1 + len(TURN_TOKENS)
    head_width = WIDTH // HEADS

    def matrix(name: str, rows: int, columns: int, scale: float, kind: gguf.GGMLQuantizationType) -> None:
        weights = rng.standard_normal((rows, columns)).astype(np.float32) * scale / np.sqrt(columns)
        writer.add_tensor(name, _quantized(weights, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, np.float32))

    q4, q8 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
    matrix("token_embd.weight", vocabulary, WIDTH, 8.0, q8)
    for layer in range(layers):
        prefix = f"blk.{layer}"
        norm(f"{prefix}.attn_norm.weight")
        # Sharp attention and a strong residual branch: otherwise greedy output falls into a short loop at once.
        matrix(f"{prefix}.attn_q.weight", WIDTH, WIDTH, 2.0, q4)
        matrix(f"{prefix}.attn_k.weight", KV_HEADS * head_width, WIDTH, 2.0, q4)
        matrix(f"{prefix}.attn_v.weight", KV_HEADS * head_width, WIDTH, 2.0, q4)
        matrix(f"{prefix}.attn_output.weight", WIDTH, WIDTH, 2.0, q4)
        norm(f"{prefix}.ffn_norm.weight")
        matrix(f"{prefix}.ffn_gate.weight", FEED_FORWARD, WIDTH, 1.5, q4)
        matrix(f"{prefix}.ffn_up.weight", FEED_FORWARD, WIDTH, 1.5, q4)
        matrix(f"{prefix}.ffn_down.weight", WIDTH, FEED_FORWARD, 1.5, q4)
    norm("output_norm.weight")
    matrix("output.weight", vocabulary, WIDTH, 4.0, q8)


def _quantized(weights: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[np.uint8]:
    packed: NDArray[np.uint8] = gguf.quants.quantize(weights, kind)
    return packed
