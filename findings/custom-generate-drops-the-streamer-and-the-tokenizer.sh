#!/bin/sh
# transformers' `generate(custom_generate=function)` drops the arguments `streamer` and `tokenizer` whenever the function
# names them as transformers' own loop does: the streamer gets the prompt and nothing more, and stop_strings fail for want
# of a tokenizer that was given.
#
# Expected: a function with the signature of transformers' own sampling loop, or that loop itself, gives what generate
# gives without it: each token to the streamer, then end().
# Seen: for a function, only arguments that its signature has beyond those of the usual loop are handed on: the dict that
# held streamer and tokenizer is replaced. With GenerationMixin._sample itself as the function the tokens are the same,
# yet the streamer sees one put (the prompt) and never an end. stop_strings with tokenizer= raise ValueError ("could
# not locate a tokenizer"); without custom_generate they work.
# What follows: a TextIteratorStreamer's reader never sees the end, so whoever writes such a function has to take
# the streamer under another name (my_streamer=...) and feed and end it, and stop strings have to be done there as well.
# Versions: transformers 5.23.0, tokenizers 0.23.3, torch 2.13.0. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
see <<'PY'
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation import GenerationMixin
from transformers.generation.streamers import BaseStreamer

torch.manual_seed(0)
letters = Tokenizer(models.BPE(vocab={chr(97 + place): place for place in range(26)}, merges=[], unk_token="z"))
letters.decoder = decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="z")
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=26, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)).eval()


class Notes(BaseStreamer):
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.numel())

    def end(self):
        self.seen.append("end")


def mine(model, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=False, streamer=None, **rest):
    return model._sample(
        input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=synced_gpus, streamer=streamer, **rest
    )


prompt, seen = torch.tensor([[1, 2, 3, 4]]), {}
for name, function in (("none", None), ("its own loop", GenerationMixin._sample), ("a wrapper of it", mine)):
    notes = Notes()
    found = model.generate(prompt, max_new_tokens=3, do_sample=False, streamer=notes, custom_generate=function)
    try:
        model.generate(
            prompt, max_new_tokens=3, do_sample=False, stop_strings=["a"], tokenizer=tokenizer, custom_generate=function
        )
        stop = "no error"
    except ValueError as error:
        stop = "locate a tokenizer" if "locate a tokenizer" in str(error) else str(error)
    seen[name] = (found[0, 4:].tolist(), notes.seen, stop)
    print(f"custom_generate = {name}: tokens {seen[name][0]}, streamer {notes.seen}, stop strings: {stop}")
assert len({tuple(tokens) for tokens, _, _ in seen.values()}) == 1
assert seen["none"][1:] == ([4, 1, 1, 1, "end"], "no error"), seen
assert seen["its own loop"][1:] == seen["a wrapper of it"][1:] == ([4], "locate a tokenizer"), seen
PY
