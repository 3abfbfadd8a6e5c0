#!/bin/sh
# transformers opens a Llama's GGUF file that states a scaling of its positions and builds the model without it, in silence.
#
# Expected: its GGUF reader knows Llama, reads rope.freq_base and turns the file into a config whose `rope_parameters` could
# hold every scaling there is. So the scaling of the file is in the config, or a warning says that it was left out.
# Seen: one random Llama in five files. Another rope.freq_base is read. With linear scaling by 4, with YaRN, and with the
# tensor rope_freqs.weight (which files of Llama 3.1, 3.2 and 3.3 hold) the config says rope_type "default", and logits are
# those of the file without scaling bit for bit; no warning says so. The same scaling in a config.json
# changes them.
# What follows: such a model is dequantised to right weights and turned wrongly, which short prompts of a Llama 3 hide.
# Versions: transformers 5.23.0, torch 2.13.0, gguf 0.19.0, accelerate 1.15.0, numpy 2.4.6. Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0 numpy==2.4.6
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
import logging
import os

import torch
from tiny_llama_gguf import make_all
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.utils import logging as theirs

told = []


class Teller(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            told.append(record.getMessage())


theirs.set_verbosity_warning()
theirs.add_handler(Teller())
ids = torch.arange(40, 80)[None]
logits = {}
for name, path in make_all(os.environ["FOLDER"]).items():
    folder, file = os.path.split(path)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    with torch.no_grad():
        logits[name] = model(ids).logits
    if name == "no scaling":
        plain = model
    apart = float((logits[name] - logits["no scaling"]).abs().max())
    print(f"{name}: {model.config.rope_parameters}, logits {apart:.3g} from those without scaling", flush=True)
    if name != "another base":
        assert model.config.rope_parameters["rope_type"] == "default", "it reads the scaling now"
        assert apart == 0, (name, "it is scaled now, or read otherwise")
assert float((logits["another base"] - logits["no scaling"]).abs().max()) > 1e-3, "the base is not read"
said = [line for line in told if "rope" in line.lower() or "scaling" in line.lower()]
print("said of it:", said)
assert not said

config = plain.config
config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
scaled = LlamaForCausalLM(config).eval()
scaled.load_state_dict(plain.state_dict())
with torch.no_grad():
    apart = float((scaled(ids).logits - logits["no scaling"]).abs().max())
print(f"linear by 4 stated in the config: logits {apart:.3g} apart")
assert apart > 1e-3
PY
