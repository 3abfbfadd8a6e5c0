#!/bin/sh
# transformers accepts `prompt_lookup_num_tokens` for encoder-decoders, and then looks for n-grams in what the decoder has
# written, never in the prompt, which went through the encoder.
#
# Expected: "prompt lookup" of a model whose answers copy their source (correction, summaries) drafts from the source; or it
# is refused for encoder-decoders.
# Seen: a T5 made to copy a source of 20 tokens, none of them twice, takes 19 decoder calls for 19 tokens with and without it,
# each over one token. A GPT-2 made to copy its prompt of 20 tokens takes 19 without it and 3 with it.
# What follows: the option costs and saves nothing on summarisers and correctors but where they repeat themselves.
# Versions: transformers 5.23.0, torch 2.13.0. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0
see <<'PY'
import torch
import transformers

VOCAB, END, LENGTH = 96, 1, 20
torch.manual_seed(0)
source = (torch.randperm(VOCAB - 4) + 4)[:LENGTH]


class Copies(transformers.LogitsProcessor):
    """Makes a model copy the source, whatever its weights say."""

    def __init__(self, first):
        self.first = first  # where its answer begins

    def __call__(self, ids, scores):
        at = ids.shape[1] - self.first
        forced = torch.full_like(scores, -1e4)
        forced[:, int(source[at]) if at < LENGTH else END] = 0
        return forced


def calls(model, reader, first, **settings):
    """Return how many forwards of `reader` it takes to copy 19 tokens."""
    widths = []
    hook = reader.register_forward_pre_hook(
        lambda module, given, named: widths.append((named.get("input_ids") if "input_ids" in named else given[0]).shape[1]),
        with_kwargs=True,
    )
    processors = [Copies(first)]
    text = model.generate(source[None], max_new_tokens=19, do_sample=False, logits_processor=processors, **settings)
    hook.remove()
    assert text[0, first:].tolist() == source[:19].tolist()
    return len(widths)


pair = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=END,
    )
).eval()
single = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4, pad_token_id=0, eos_token_id=END)
).eval()
lookup = {"prompt_lookup_num_tokens": 8, "max_matching_ngram_size": 1}
seen = [
    calls(model, reader, first, **settings)
    for model, reader, first in ((pair, pair.decoder, 1), (single, single.transformer, LENGTH))
    for settings in ({}, lookup)
]
print("decoder calls for 19 tokens: T5 {} plain, {} with prompt lookup; GPT-2 {} plain, {} with".format(*seen))
assert seen[:3] == [19, 19, 19] and seen[3] <= 6, seen
PY
