"""A GGUF model and its vocabulary: what may be asked from any thread, because nothing in it changes."""

import ctypes
import functools
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline_executor.llamacpp.binding import BindingError, load_library, recent_log

_PIECE_BYTES = 256
_METADATA_BYTES = 65_536


class ModelLoadError(RuntimeError):
    """llama.cpp refused the model file; the message quotes its last log lines."""


@functools.lru_cache(maxsize=16)
def _hash_of(path: str, _size_bytes: int, _modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Model:
    """A loaded model. Tokenising and detokenising are thread-safe; `close` is not."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ModelLoadError(f"no model file at {path}")
        self._library = load_library()
        handle = self._library.llama_model_load_from_file(
            str(path).encode(), self._library.llama_model_default_params()
        )
        if not handle:
            raise ModelLoadError(f"cannot load {path}: {' | '.join(list(recent_log)[-3:])}")
        self._handle: int | None = int(handle)
        self._vocab = self._library.llama_model_get_vocab(handle)
        self.path = path
        stat = path.stat()
        self.sha256 = _hash_of(str(path), stat.st_size, stat.st_mtime_ns)
        self.vocab_size: int = self._library.llama_vocab_n_tokens(self._vocab)
        self.train_context_tokens: int = self._library.llama_model_n_ctx_train(handle)
        self.end_token_ids = frozenset(
            token for token in range(self.vocab_size) if self._library.llama_vocab_is_eog(self._vocab, token)
        )
        self.eos_token_id: int = self._library.llama_vocab_eos(self._vocab)
        self.bos_token_id: int = self._library.llama_vocab_bos(self._vocab)
        self.chat_template = self.metadata("tokenizer.chat_template")
        self._pieces: list[bytes | None] = [None] * self.vocab_size

    @property
    def handle(self) -> int:
        """The `llama_model *`; raises after `close`."""
        if self._handle is None:
            raise BindingError("the model is closed")
        return self._handle

    def metadata(self, key: str) -> str | None:
        """A GGUF metadata value as text, or None if the file does not have it."""
        buffer = ctypes.create_string_buffer(_METADATA_BYTES)
        length = self._library.llama_model_meta_val_str(self.handle, key.encode(), buffer, _METADATA_BYTES)
        return None if length < 0 else buffer.value.decode("utf-8", "replace")

    @functools.cached_property
    def tokenizer_id(self) -> str:
        """Names the tokenizer: equal ids mean equal token ids for equal text."""
        digest = hashlib.sha256()
        for token in range(self.vocab_size):
            piece = self.piece(token)
            digest.update(len(piece).to_bytes(4, "little") + piece)
        family = f"{self.metadata('tokenizer.ggml.model')}/{self.metadata('tokenizer.ggml.pre')}"
        return f"{family}/{digest.hexdigest()[:16]}"

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Token ids of `text`. `parse_special` reads control tokens such as chat markers out of the text."""
        raw = text.encode("utf-8", "replace")
        ids = np.empty(len(raw) + 8, dtype=np.int32)
        count = self._library.llama_tokenize(
            self._vocab, raw, len(raw), ids.ctypes.data, len(ids), add_special, parse_special
        )
        if count < 0:
            ids = np.empty(-count, dtype=np.int32)
            count = self._library.llama_tokenize(
                self._vocab, raw, len(raw), ids.ctypes.data, len(ids), add_special, parse_special
            )
        return ids[:count].copy()

    def tokenize_prompt(self, text: str) -> NDArray[np.int32]:
        """Token ids of a rendered prompt; a beginning-of-sequence token the template wrote is not added twice."""
        bos = self.token_text(self.bos_token_id)
        return self.tokenize(text, add_special=not (bos and text.startswith(bos)))

    @functools.cached_property
    def longest_piece_bytes(self) -> int:
        """Most bytes of text one token can stand for."""
        return max(
            max(len(self.piece(token)), len(self.token_text(token))) for token in range(self.vocab_size)
        )

    def piece(self, token: int) -> bytes:
        """The bytes one token stands for in generated text; control tokens stand for none."""
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._render(token, special=False)
        return known

    def token_text(self, token: int) -> str:
        """How a token is written in a prompt, control tokens included; "" for no token (-1)."""
        return self._render(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _render(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        length = self._library.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self._library.llama_token_to_piece(self._vocab, token, buffer, -length, 0, special)
        return buffer.raw[:length]

    def detokenize(self, ids: NDArray[np.int32]) -> str:
        """Text of a run of ids, bytes that are no UTF-8 replaced."""
        return b"".join(self.piece(int(token)) for token in ids).decode("utf-8", "replace")

    def close(self) -> None:
        """Free the weights. Every context on this model must be closed before."""
        if self._handle is not None:
            self._library.llama_model_free(self._handle)
            self._handle = None
