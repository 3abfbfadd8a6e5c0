#!/bin/sh
# A T5, mT5 or UMT5 made from a configuration with tie_word_embeddings=False has its embedding for a head, and whatever is
# saved says that it is tied, even beside a stored head of its own.
#
# Expected: tie_word_embeddings=False gives two matrices, as in T5 1.1, and is what config.json says after saving.
# Seen: one matrix, no lm_head.weight in the file, and "tie_word_embeddings": true in it. A model that was read from files
# with two different matrices keeps both, and is saved with both, beside "tie_word_embeddings": true.
# What follows: a T5 1.1 that is trained from scratch trains one matrix where two were asked for. Whoever reads such files and
# believes config.json drops the head that is stored: read the file's tensors first.
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

seen = {}
for kind in ("T5", "MT5", "UMT5"):
    first, again = (Path(os.environ["FOLDER"]) / f"{kind}-{part}" for part in ("first", "again"))
    config = getattr(transformers, kind + "Config")(
        vocab_size=64, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )
    maker = getattr(transformers, kind + "ForConditionalGeneration")
    model = maker(config)
    is_one = model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr()
    model.save_pretrained(first)
    weights, told = load_file(first / "model.safetensors"), json.loads((first / "config.json").read_text())
    is_stored, says = "lm_head.weight" in weights, told["tie_word_embeddings"]
    weights["lm_head.weight"], told["tie_word_embeddings"] = torch.randn(64, 64), False
    save_file(weights, first / "model.safetensors", {"format": "pt"})
    (first / "config.json").write_text(json.dumps(told))
    maker.from_pretrained(first).save_pretrained(again)
    kept = torch.equal(load_file(again / "model.safetensors")["lm_head.weight"], weights["lm_head.weight"])
    seen[kind] = (is_one, is_stored, says, kept, json.loads((again / "config.json").read_text())["tie_word_embeddings"])
print("made untied: one matrix, head stored, file says tied; read with two: head kept, file says tied:")
print(seen)
assert all(found == (True, False, True, True, True) for found in seen.values()), seen
PY
