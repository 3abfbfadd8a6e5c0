"""Whether a GGUF model answers as llama.cpp answers from the same file: greedy texts, token by token.

    python -m outpace.bench.gguf_chat model.gguf --prompts questions.jsonl --limit 20

Each prompt is framed by the file's chat template and written to both in the same ids. Where texts part, the margin is
how much likelier our token was here than theirs: llama.cpp rounds activations to 8 bits where weights are quantised,
and its float32 sums run in another order. With `--expanded` llama.cpp reads the same numbers from a float32 copy that
its own tool makes, so that only the order of sums is left. It needs llama-cpp-python.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.gguf_text import llama_cpp
from outpace.bench.prompts import read_prompts
from outpace.bench.report import Table
from outpace.errors import ConfigError

__all__ = ["Answer", "answers", "main"]

_FLOAT32 = 0  # GGML_TYPE_F32


@dataclass(frozen=True, slots=True)
class Answer:
    """What both wrote to one prompt.

    Attributes:
        prompt: its id.
        is_cut_alike: llama.cpp makes the same ids of the framed text.
        length: tokens until the texts part or end.
        total: tokens of ours.
        ours, theirs: the tokens that differ; "" where none do.
        margin: log-probability of our token less that of theirs, under our model.
    """

    prompt: str
    is_cut_alike: bool
    length: int
    total: int
    ours: str = ""
    theirs: str = ""
    margin: float = 0.0


def answers(lm: LanguageModel, peer: Any, prompts: Sequence[tuple[str, str]], max_tokens: int) -> list[Answer]:
    """Let both write.

    Args:
        lm: the model here.
        peer: a `llama_cpp.Llama` of the same file.
        prompts: id and text of each.
        max_tokens: the longest answer.
    """
    assert lm.tokenizer is not None
    found = []
    for name, text in prompts:
        messages = [{"role": "user", "content": text}]
        ids, framed = lm.encode_chat(messages), lm.tokenizer.render_chat(messages)
        ours = list(lm.generate(ids, max_tokens=max_tokens).tokens)
        theirs = _written(peer, ids, max_tokens, lm.end_tokens)
        is_cut_alike = peer.tokenize(framed.encode(), add_bos=False, special=True) == ids
        pairs = enumerate(zip([*ours, -1], [*theirs, -1], strict=False))
        at = next((i for i, (mine, other) in pairs if mine != other), len(ours))
        if at == len(ours) == len(theirs):
            found.append(Answer(name, is_cut_alike, at, len(ours)))
            continue
        mine, other = (text[at] if at < len(text) else lm.end_tokens[0] for text in (ours, theirs))
        scored = [lm.score([*ids, *ours[:at], token]).log_probs[-1] for token in (mine, other)]
        margin = (scored[0] or 0.0) - (scored[1] or 0.0)
        spelled = [repr(lm.tokenizer.decode([token], skip_special=False)) for token in (mine, other)]
        found.append(Answer(name, is_cut_alike, at, len(ours), spelled[0], spelled[1], margin))
    return found


def _written(peer: Any, ids: Sequence[int], max_tokens: int, ends: Sequence[int]) -> list[int]:
    """Return what llama.cpp writes greedily, the end token left out as ours leaves it out."""
    peer.reset()
    tokens: list[int] = []
    for token in peer.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        if token in ends:
            break
        tokens.append(token)
        if len(tokens) == max_tokens:
            break
    return tokens


def _expanded(source: Path, target: Path) -> Path:
    """Let llama.cpp write a file's numbers as float32."""
    library = llama_cpp()
    settings = library.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = library.LLAMA_FTYPE_ALL_F32, True
    failed = library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    if failed or not target.is_file():
        raise ConfigError(f"llama.cpp could not expand {source}.", "Leave --expanded out.")
    return target


def _work(given: argparse.Namespace) -> None:
    lm = load(given.file, dtype=given.dtype, generation_config="none")
    prompts = [(prompt.id, prompt.text) for prompt in read_prompts(given.prompts, given.limit)]
    threads = {"n_threads": given.threads, "n_threads_batch": given.threads} if given.threads else {}
    cache = {"type_k": _FLOAT32, "type_v": _FLOAT32}
    with tempfile.TemporaryDirectory() as folder:
        file = _expanded(given.file, Path(folder) / "float32.gguf") if given.expanded else given.file
        peer = llama_cpp().Llama(str(file), n_ctx=given.context, verbose=False, **threads, **cache)
        found = answers(lm, peer, prompts, given.max_tokens)
    cells = [
        [
            one.prompt,
            "yes" if one.is_cut_alike else "no",
            f"{one.length} of {one.total}",
            one.ours,
            one.theirs,
            f"{one.margin:.4f}" if one.ours else "",
        ]
        for one in found
    ]
    heads = ["prompt", "same ids", "same tokens", "ours", "theirs", "margin"]
    print(Table("", heads, cells).markdown())
    same = sum(not one.ours for one in found)
    print(f"\n{same} of {len(found)} answers are the same, token by token ({given.dtype}, {given.max_tokens} tokens).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = new_parser("gguf_chat", __doc__)
    parser.add_argument("file", type=Path, help="a GGUF model with a chat template")
    parser.add_argument("--prompts", default="stories", help="a shipped set, or a file")
    parser.add_argument("--limit", type=int, default=20, help="prompts used; 0 = all")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=2048, help="tokens that llama.cpp makes room for")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--expanded", action="store_true", help="llama.cpp reads the same numbers as float32")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
