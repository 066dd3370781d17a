"""The `ctypes` binding on the llama.cpp that ships inside the `xllamacpp` wheel.

The wheel offers Python a server object only, but its extension exports the `llama_*` C API. Nothing promises
that the structs keep their layout between releases, so the release is pinned, and `load_library` compares the
library's own default parameters, trailing fields included, with what this layout expects before anything is
passed by value. No other module knows a C struct.

Only integers, pointers and NumPy views leave this module.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
from collections import deque
from ctypes import c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from pathlib import Path
from typing import Any, ClassVar

PINNED_PACKAGE = "xllamacpp"
PINNED_VERSION = "2026.10.11549"

_log = logging.getLogger(__name__)


class BindingError(RuntimeError):
    """The llama.cpp library is missing, of another release, or laid out differently than this binding expects."""


class ModelParams(ctypes.Structure):
    """`llama_model_params` of the pinned release; only the named fields are ever written."""

    _fields_: ClassVar[Any] = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("reserved_24", c_int32),
        ("reserved_28", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("flags", c_uint8 * 6),
    ]


class ContextParams(ctypes.Structure):
    """`llama_context_params` of the pinned release."""

    _fields_: ClassVar[Any] = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("reserved_24", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("reserved_112", c_void_p),
        ("reserved_120", c_void_p),
        ("reserved_128", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(ctypes.Structure):
    """`llama_batch`: pointers into arrays that the caller owns."""

    _fields_: ClassVar[Any] = [
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    ]


# What the pinned release answers for its defaults. The trailing fields matter most: older releases agree on
# the leading ones and would take `kv_unified` from another byte without a word.
_CONTEXT_DEFAULTS: dict[str, float | bool] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}
_MODEL_DEFAULTS: dict[str, int] = {"n_gpu_layers": -1, "split_mode": 1, "main_gpu": 0}
_MODEL_FLAGS = bytes((0, 0, 1, 0, 0, 0))
_CONTEXT_PARAMS_BYTES = 168
_MODEL_PARAMS_BYTES = 80
_UNWRITTEN = 0xAB

_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)

# name -> (result type, argument types): the whole C surface this project uses.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_LogCallback, c_void_p]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_meta_val_str": (c_int32, [c_void_p, c_char_p, c_char_p, c_size_t]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_bos": (c_int32, [c_void_p]),
    "llama_vocab_eos": (c_int32, [c_void_p]),
    "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_ctx_seq": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_ubatch": (c_uint32, [c_void_p]),
    "llama_n_seq_max": (c_uint32, [c_void_p]),
    "llama_n_threads": (c_int32, [c_void_p]),
    "llama_n_threads_batch": (c_int32, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (c_void_p, [c_void_p]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_pos_max": (c_int32, [c_void_p, c_int32]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_state_seq_get_size": (c_size_t, [c_void_p, c_int32]),
    "llama_state_seq_get_data": (c_size_t, [c_void_p, c_void_p, c_size_t, c_int32]),
    "llama_state_seq_set_data": (c_size_t, [c_void_p, c_void_p, c_size_t, c_int32]),
}

_KEPT_LOG_LINES = 200
recent_log: deque[str] = deque(maxlen=_KEPT_LOG_LINES)
"""The last lines llama.cpp logged, newest last: what an error message quotes."""

_LEVELS = {3: logging.WARNING, 4: logging.ERROR}


def _on_log(level: int, text: bytes | None, _user_data: object) -> None:
    line = (text or b"").decode("utf-8", "replace").rstrip("\n")
    if line:
        recent_log.append(line)
        _log.log(_LEVELS.get(level, logging.DEBUG), "llama.cpp: %s", line)


# Kept for the life of the process: llama.cpp may log from its own teardown.
_log_callback = _LogCallback(_on_log)


def extension_path() -> Path:
    """Where the wheel's shared object lies; raises `BindingError` if the pinned release is not installed."""
    try:
        version = importlib.metadata.version(PINNED_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise BindingError(f"{PINNED_PACKAGE}=={PINNED_VERSION} is not installed") from error
    if version != PINNED_VERSION:
        raise BindingError(
            f"{PINNED_PACKAGE} is {version}, but the struct layouts here are those of {PINNED_VERSION}"
        )
    spec = importlib.util.find_spec(PINNED_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or []:
        found = sorted(Path(folder).glob(f"{PINNED_PACKAGE}*.so"))
        if found:
            return found[0]
    raise BindingError(f"{PINNED_PACKAGE} {version} has no shared object in {list(folders or [])}")


@functools.cache
def load_library() -> ctypes.CDLL:
    """Open the library, check it, quiet it. Raises `BindingError` rather than risk a wrong byte."""
    # An assertion inside llama.cpp aborts the process; without this it would attach a debugger first.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    path = extension_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BindingError(
            f"cannot open {path}: {error} (is the system package libgomp1 installed?)"
        ) from error
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise BindingError(f"{path} does not export {name}") from error
        function.restype, function.argtypes = result, arguments
    _check_layouts(library)
    library.llama_log_set(_log_callback, None)
    library.llama_backend_init()
    return library


def _check_layouts(library: ctypes.CDLL) -> None:
    for struct, size in ((ContextParams, _CONTEXT_PARAMS_BYTES), (ModelParams, _MODEL_PARAMS_BYTES)):
        if ctypes.sizeof(struct) != size:
            raise BindingError(
                f"{struct.__name__} is {ctypes.sizeof(struct)} bytes on this platform, not {size}"
            )
    check_defaults(
        library.llama_context_default_params(),
        _written_bytes(library, "llama_context_default_params"),
        library.llama_model_default_params(),
        _written_bytes(library, "llama_model_default_params"),
    )


def check_defaults(context: ContextParams, context_bytes: int, model: ModelParams, model_bytes: int) -> None:
    """The canary: defaults and struct ends as the pinned release has them, or `BindingError` naming what differs."""
    wrong = [
        f"{name}={getattr(params, name)} (expected {expected})"
        for params, table in ((context, _CONTEXT_DEFAULTS), (model, _MODEL_DEFAULTS))
        for name, expected in table.items()
        if getattr(params, name) != expected
    ]
    if bytes(model.flags) != _MODEL_FLAGS:
        wrong.append(f"model flags={bytes(model.flags).hex()} (expected {_MODEL_FLAGS.hex()})")
    if context_bytes != _CONTEXT_PARAMS_BYTES:
        wrong.append(f"llama_context_params ends at byte {context_bytes} (expected {_CONTEXT_PARAMS_BYTES})")
    if not ModelParams.flags.offset + len(_MODEL_FLAGS) <= model_bytes <= _MODEL_PARAMS_BYTES:
        wrong.append(
            f"llama_model_params ends at byte {model_bytes} (expected at most {_MODEL_PARAMS_BYTES})"
        )
    if wrong:
        raise BindingError(f"llama.cpp's struct layout is not that of {PINNED_VERSION}: {'; '.join(wrong)}")


def _written_bytes(library: ctypes.CDLL, name: str) -> int:
    """Where a struct returned by value ends: large structs come through a hidden pointer, so mark and look."""
    buffer = (c_uint8 * 512)(*([_UNWRITTEN] * 512))
    prototype = ctypes.CFUNCTYPE(c_void_p, c_void_p)
    prototype((name, library))(ctypes.addressof(buffer))
    return len(bytes(buffer).rstrip(bytes([_UNWRITTEN])))


__all__ = [
    "PINNED_PACKAGE",
    "PINNED_VERSION",
    "Batch",
    "BindingError",
    "ContextParams",
    "ModelParams",
    "check_defaults",
    "extension_path",
    "load_library",
    "recent_log",
]
