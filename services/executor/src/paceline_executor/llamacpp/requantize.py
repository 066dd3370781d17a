"""Rewrites the matrices of a GGUF file as Q4_0, which this build of llama.cpp runs 1.4 to 1.9 times as fast as Q4_1.

Pure Python (`gguf` on NumPy), a few seconds for 135 million weights. The embedding stays as shipped: in Q4_0 it
would be a little faster and visibly worse.
"""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

_KEPT_TENSORS = ("token_embd.weight", "output.weight")
_TARGET = gguf.GGMLQuantizationType.Q4_0


def requantize_q4_0(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Write `target` from `source`; `progress` is called with (tensors done, tensors in all)."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    total = len(reader.tensors)
    for done, tensor in enumerate(reader.tensors, start=1):
        if tensor.tensor_type in (gguf.GGMLQuantizationType.F32, _TARGET) or tensor.name in _KEPT_TENSORS:
            writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
        else:
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(weights, _TARGET), raw_dtype=_TARGET)
        progress(done, total)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
