"""Rewrites the matrices of a GGUF file as Q8_0, which this build of llama.cpp runs faster than Q4_1 and as exactly.

Pure Python (`gguf` on NumPy), a few seconds for 135 million weights. Q4_0 would decode 10 to 20 % faster still, but
what is rounded twice answers badly: of 36 greedy answers of at most 224 tokens 32 never ended, 20 with Q8_0, 18 as
shipped.
"""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

_TARGET = gguf.GGMLQuantizationType.Q8_0


def requantize_q8_0(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Write `target` from `source`; `progress` is called with (tensors done, tensors in all)."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    total = len(reader.tensors)
    for done, tensor in enumerate(reader.tensors, start=1):
        if tensor.tensor_type in (gguf.GGMLQuantizationType.F32, _TARGET):
            writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
        else:
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(weights, _TARGET), raw_dtype=_TARGET)
        progress(done, total)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
