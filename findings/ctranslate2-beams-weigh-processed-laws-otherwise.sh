#!/bin/sh
# Under beam search, settings that forbid or penalise tokens weigh differently in CTranslate2 and in transformers, although
# both agree greedily, and agree in beams without such settings.
#
# Expected: engines that write the same text greedily with `no_repeat_ngram_size`, and the same beams without it, write the
# same beams with it.
# Seen (4 beams, 40 random sources of a small T5): greedy 40 of 40 equal; beams 40 of 40; beams with no_repeat_ngram_size=2
# 12 of 40; with two forbidden tokens 30 of 40; with repetition_penalty=1.5 11 of 40. transformers forbids tokens in the laws'
# logarithms and leaves the rest as they are, so a hypothesis that met a forbidden token is charged for it; CTranslate2
# forbids them in the logits, and what is left sums to one again. transformers' renormalize_logits=True gives CTranslate2's
# text for all that forbids (40 of 40, 40 of 40), and still 13 of 40 for the penalty: under beams transformers multiplies
# negative logarithms by it, while greedy decoding, and CTranslate2 always, divide positive logits and multiply negative ones.
# What follows: moving a summariser (beams and no_repeat_ngram_size are in its files) from one engine to the other changes its
# texts, with float32 on both sides and every setting carried over; scores cannot be compared either.
# Versions: ctranslate2 4.8.5, transformers 5.23.0, torch 2.13.0. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5
FOLDER="$home/model" see <<'PY'
import os

import ctranslate2
import torch
import transformers
from ctranslate2.converters import TransformersConverter

VOCAB, END = 96, 1


class Names:
    """Stands for a tokenizer: the converter wants the names of the tokens alone."""

    pad_token, eos_token, unk_token, bos_token = "<0>", "<1>", "<2>", "<3>"
    pad_token_id, eos_token_id, unk_token_id, bos_token_id = 0, 1, 2, 3
    vocab_size, all_special_ids, additional_special_tokens = VOCAB, [0, 1], []

    def get_vocab(self):
        return {f"<{index}>": index for index in range(VOCAB)}

    def convert_ids_to_tokens(self, ids):
        return f"<{ids}>" if isinstance(ids, int) else [f"<{index}>" for index in ids]


transformers.AutoTokenizer.from_pretrained = lambda *_, **__: Names()
torch.manual_seed(0)
config = transformers.T5Config(
    vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
    decoder_start_token_id=0, pad_token_id=0, eos_token_id=END, dropout_rate=0,
)
model = transformers.T5ForConditionalGeneration(config).eval()
with torch.no_grad():  # laws that are far from flat, so that rounding decides nothing
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "embed" not in name and "shared" not in name:
            weight.mul_(3)
folder = os.environ["FOLDER"]
model.save_pretrained(folder)
TransformersConverter(folder).convert(folder + "-ct2")
translator = ctranslate2.Translator(folder + "-ct2", device="cpu", compute_type="float32", intra_threads=1)
sources = [[*torch.randint(4, VOCAB, (3 + index % 25,)).tolist(), END] for index in range(40)]


def cut(ids):
    return ids[: ids.index(END) + 1] if END in ids else ids


def theirs(**settings):
    rows = [model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, **settings) for ids in sources]
    return [cut(row[0].tolist()[1:]) for row in rows]


def other(**settings):
    rows = translator.translate_batch(
        [[f"<{index}>" for index in ids] for ids in sources],
        max_decoding_length=20, return_end_token=True, length_penalty=1, **settings,
    )
    return [cut([int(token[1:-1]) for token in row.hypotheses[0]]) for row in rows]


def equal(ours, settings, count):
    found = other(beam_size=count, **settings)
    given = {"num_beams": count, "early_stopping": True} if count > 1 else {"num_beams": 1}
    plain = sum(a == b for a, b in zip(theirs(**given, **ours), found))
    again = sum(a == b for a, b in zip(theirs(**given, renormalize_logits=True, **ours), found))
    print(f"{count} beams, {ours or 'no settings'}: {plain} of 40 equal, with renormalize_logits {again}")
    return plain, again


ngrams = {"no_repeat_ngram_size": 2}
words = {"bad_words_ids": [[35], [80]]}, {"suppress_sequences": [["<35>"], ["<80>"]]}
penalty = {"repetition_penalty": 1.5}
assert equal(ngrams, ngrams, 1)[0] >= 39 and equal({}, {}, 4)[0] >= 39
for ours, settings in ((ngrams, ngrams), words):
    plain, again = equal(ours, settings, 4)
    assert plain < 36 and again >= 39
assert max(equal(penalty, penalty, 4)) < 30 and equal(penalty, penalty, 1)[0] >= 39
PY
