#!/bin/sh
# transformers takes the tokens of `added_tokens_decoder` from tokenizer_config.json, but not their ids: what the file says
# has id 10 gets the next free one, without a word.
#
# Expected: the table maps ids to tokens, so either its ids hold or loading fails.
# Seen: on a tokenizer.json of two tokens, entries "10" and "20" become 2 and 3.
# What follows: where tokenizer.json and the table disagree (a vocabulary padded to a round size, a table edited by hand),
# special tokens are encoded to rows of the embedding that they were never trained on.
# Versions: transformers 5.23.0, tokenizers 0.23.3. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
FOLDER="$home/model" see <<'PY'
import json
import os
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

folder = Path(os.environ["FOLDER"])
folder.mkdir()
Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
flags = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
table = {"10": {"content": "<x>", **flags}, "20": {"content": "<y>", **flags}}
(folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": table})
)
seen = {index: str(token) for index, token in AutoTokenizer.from_pretrained(folder).added_tokens_decoder.items()}
print(seen)
assert seen == {2: "<x>", 3: "<y>"}, seen
PY
