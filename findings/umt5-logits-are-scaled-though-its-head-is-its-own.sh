#!/bin/sh
# transformers multiplies UMT5's last states by d_model**-0.5 before its output matrix whatever its files say; T5 and mT5 with
# the same files are not scaled.
#
# Expected: the factor belongs to models whose output matrix is their embedding (T5 1.0). A file that says
# tie_word_embeddings: false, and holds a matrix of its own, as published UMT5 files do, gives states times that matrix.
# Seen: with d_model 64 the logits are 0.125 of that for UMT5, 1.0 of it for T5 and mT5. The configuration that was read as
# false says true afterwards in all three.
# What follows: the likeliest token is the same, so greedy texts hide it; sampling at temperature 1 draws as at temperature
# d_model**0.5 (some 22 for the small model), log-probabilities and beams' scores are nearly flat, and a loss trains the head
# to another scale.
# Versions: transformers 5.23.0, torch 2.13.0. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0
FOLDER="$home" see <<'PY'
import json
import os
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file


def ratio(kind):
    """Return logits over states times the stored matrix, and what the configuration says of ties once it is read."""
    folder = Path(os.environ["FOLDER"]) / kind
    torch.manual_seed(0)
    config = getattr(transformers, kind + "Config")(
        vocab_size=64, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, feed_forward_proj="gated-gelu",
    )
    maker = getattr(transformers, kind + "ForConditionalGeneration")
    maker(config).save_pretrained(folder)
    weights, told = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    weights["lm_head.weight"] = torch.randn(64, 64)  # a head of its own, as in T5 1.1, mT5 and UMT5
    told["tie_word_embeddings"] = False
    told.pop("scale_decoder_outputs", None)  # a key of newer files alone
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(told))
    model = maker.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor([[5, 6, 7, 1]]), decoder_input_ids=torch.tensor([[0, 9, 8]]),
            output_hidden_states=True,
        )
        plain = found.decoder_hidden_states[-1] @ weights["lm_head.weight"].T
    return round(float((found.logits / plain).median()), 3), model.config.tie_word_embeddings


seen = {kind: ratio(kind) for kind in ("T5", "MT5", "UMT5")}
print("logits over states times the head, and tie_word_embeddings once read:", seen)
assert seen == {"T5": (1.0, True), "MT5": (1.0, True), "UMT5": (0.125, True)}, seen
PY
