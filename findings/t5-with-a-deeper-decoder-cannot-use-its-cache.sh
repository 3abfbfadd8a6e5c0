#!/bin/sh
# A T5 whose decoder has more layers than its encoder cannot generate with its cache in transformers: the cache is made as deep
# as the encoder.
#
# Expected: num_layers counts the encoder's layers and num_decoder_layers the decoder's, so the decoder's cache has the latter.
# Seen: generate() raises IndexError with num_layers=1 and num_decoder_layers=3; with use_cache=False it writes; a decoder
# that is as deep as the encoder, or less deep, writes with its cache.
# What follows: unbalanced models of this line are decoded without a cache there, at a cost that grows with the square of the
# text, or not at all. The reverse, deep encoders with shallow decoders, works.
# Versions: transformers 5.23.0, torch 2.13.0. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0
see <<'PY'
import torch
import transformers


def written(layers, decoder_layers, is_cached):
    """Return how many tokens it writes, or what it raises."""
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=layers, num_decoder_layers=decoder_layers, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    try:
        text = model.generate(
            torch.tensor([[5, 6, 1]]), min_new_tokens=4, max_new_tokens=4, do_sample=False, use_cache=is_cached
        )
    except IndexError as error:
        return type(error).__name__
    return text.shape[1] - 1


seen = [written(*case) for case in ((1, 3, True), (1, 3, False), (3, 3, True), (3, 1, True))]
print("encoder 1, decoder 3: {} with a cache, {} without; 3 and 3: {}; 3 and 1: {}".format(*seen))
assert seen == ["IndexError", 4, 4, 4], seen
PY
