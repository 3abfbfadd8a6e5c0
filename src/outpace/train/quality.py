"""How good a model of the zoo is: bits per byte against n-gram models, and completions of library code that parse.

Run `python -m outpace.train.quality DIR... [--data DIR] [--json FILE]` on models that share a tokenizer. The figures go
into each model's card too. A model named `NAME-draft` is also compared with `NAME` beside it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from outpace.failures import guarded
from outpace.text.ngram import NGram

from .bounds import Ints, block_bits, masked_bits
from .completions import Parsing, measure_parsing
from .data import encode_stream, find_data, read_documents
from .export import load_network, load_tokenizer
from .network import Llama
from .sources import SOURCES, held_out_library, held_out_stories

log = logging.getLogger("outpace.train")
HEADING = "## Quality"
# The byte that ends a document for the byte-level n-gram model, beside the 256 that text can hold.
BYTE_END = 256
_NGRAMS = "The n-gram models are interpolated modified Kneser-Ney on the texts of `stories`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """One held-out text and what the n-gram models make of it.

    Attributes:
        text: `stories` or `library`.
        num_bytes: Size of the text in UTF-8 bytes.
        unigram: Under the frequencies of the tokens in the training texts alone.
        token_ngram: Order-5 Kneser-Ney over the model's tokens, trained on all sources.
        byte_ngram: The same over bytes.
        domain_ngram: As `token_ngram`, but trained on the sources of this kind of text alone.
    """

    text: str
    num_bytes: int
    unigram: float
    token_ngram: float
    byte_ngram: float
    domain_ngram: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut(Baselines):
    """Baselines in bits of the whole text, and its tokens.

    Attributes:
        stream: Its tokens, `<|endoftext|>` around each document.
    """

    stream: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsPerByte(Baselines):
    """Baselines in bits per byte, and a model beside them.

    Attributes:
        model: The model's own; for a diffusion model an upper bound.
        perplexity: The same per token, as 2 to the power of the bits.
        causal: Bits per byte of the causal model whose weights started a diffusion model; None for others.
        below_token: Share by which the model is below `token_ngram`.
        below_byte: Share by which it is below `byte_ngram`.
    """

    model: float
    perplexity: float
    causal: float | None
    below_token: float
    below_byte: float


@torch.inference_mode()
def causal_bits(network: Llama, stream: Ints) -> float:
    """Bits of `stream` after its first token, each token given the 512 to 1023 before it."""
    window, stride = network.shape.context, network.shape.context // 2
    tokens, total, done = torch.from_numpy(stream.astype(np.int64)), 0.0, 1
    for start in range(0, len(tokens) - 1, stride):
        piece = tokens[start : start + window]
        logprobs = network(piece[None, :-1])[0].log_softmax(-1)
        fresh = slice(done - start - 1, len(piece) - 1)
        total -= float(logprobs[fresh].gather(1, piece[1:][fresh, None]).double().sum())
        done = start + len(piece)
        if done >= len(tokens):
            break
    return total / float(np.log(2))


def byte_stream(documents: Sequence[str]) -> Ints:
    """Documents as bytes with an end symbol before each and after the last."""
    pieces = [np.array([BYTE_END], dtype=np.int64)]
    for text in documents:
        pieces += [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64), pieces[0]]
    return np.concatenate(pieces)


def baselines(tokenizer: Tokenizer, data: Path) -> list[HeldOut]:
    """Read the held-out texts and score them with n-gram models of order 5 (minutes, a few GB)."""
    texts = {"stories": held_out_stories(data), "library": [text for _, text in held_out_library()]}
    kinds = {"stories": "tinystories", "library": "python-library"}
    documents = dict(zip((source.name for source in SOURCES), read_documents(SOURCES, data), strict=True))
    training = {name: encode_stream(tokenizer, held).astype(np.int64) for name, held in documents.items()}
    streams = {name: encode_stream(tokenizer, held).astype(np.int64) for name, held in texts.items()}
    vocab = tokenizer.get_vocab_size()

    def total(model: NGram, stream: Ints) -> float:
        return float(model.bits(stream).sum())

    # One model at a time: each takes a gigabyte or more.
    frequencies = np.bincount(np.concatenate(list(training.values())), minlength=vocab) + 1.0
    surprise = -np.log2(frequencies / frequencies.sum())
    tokens = NGram(np.concatenate(list(training.values())), 5, vocab)
    by_token = {name: total(tokens, stream) for name, stream in streams.items()}
    del tokens
    octets = NGram(byte_stream([text for held in documents.values() for text in held]), 5, BYTE_END + 1)
    by_byte = {name: total(octets, byte_stream(held)) for name, held in texts.items()}
    del octets
    results = []
    for name, stream in streams.items():
        own = NGram(np.concatenate([part for key, part in training.items() if key.startswith(kinds[name])]), 5, vocab)
        results.append(
            HeldOut(
                text=name,
                num_bytes=sum(len(text.encode()) for text in texts[name]),
                stream=stream,
                unigram=float(surprise[stream[1:]].sum()),
                token_ngram=by_token[name],
                byte_ngram=by_byte[name],
                domain_ngram=total(own, stream),
            )
        )
    return results


def bits_of(network: Llama, stream: Ints) -> float:
    """Bits of `stream` under a network: its own where it is causal, else an upper bound."""
    if network.shape.causal:
        return causal_bits(network, stream)
    return block_bits(network, stream) if network.shape.block else masked_bits(network, stream)


def measure_bits(network: Llama, held: HeldOut, causal: Llama | None = None) -> BitsPerByte:
    """Bits per byte of a model beside those of the n-gram models and, for a diffusion model, its causal sibling."""
    bits = bits_of(network, held.stream)
    size = held.num_bytes
    return BitsPerByte(
        text=held.text,
        num_bytes=size,
        model=bits / size,
        perplexity=2 ** (bits / (len(held.stream) - 1)),
        causal=None if causal is None else causal_bits(causal, held.stream) / size,
        unigram=held.unigram / size,
        token_ngram=held.token_ngram / size,
        byte_ngram=held.byte_ngram / size,
        domain_ngram=held.domain_ngram / size,
        below_token=1 - bits / held.token_ngram,
        below_byte=1 - bits / held.byte_ngram,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a drafter agrees with its target on held-out text.

    Attributes:
        text: `stories` or `library`.
        same_top: Share of positions where both prefer the same token (what greedy drafting accepts).
        overlap: Mean of the sum of min(target, draft) probabilities (what sampled drafting accepts at temperature 1).
    """

    text: str
    same_top: float
    overlap: float


@torch.inference_mode()
def measure_agreement(draft: Llama, target: Llama, held: HeldOut) -> Agreement:
    """Compare next-token distributions position by position."""
    tokens = torch.from_numpy(held.stream)
    same = overlap = 0.0
    for start in range(0, len(tokens), target.shape.context):
        piece = tokens[start : start + target.shape.context]
        target_logits, draft_logits = target(piece[None])[0], draft(piece[None])[0]
        same += float((target_logits.argmax(-1) == draft_logits.argmax(-1)).sum())
        overlap += float(torch.minimum(target_logits.softmax(-1), draft_logits.softmax(-1)).sum())
    return Agreement(text=held.text, same_top=same / len(tokens), overlap=overlap / len(tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """All figures of one model.

    Attributes:
        model: Its name.
        bits_per_byte: One entry for each held-out text.
        parsing: Completions of library code; None for a masked model.
        agreement: For a drafter, one entry for each held-out text.
    """

    model: str
    bits_per_byte: list[BitsPerByte]
    parsing: Parsing | None
    agreement: list[Agreement]


def describe(quality: Quality) -> str:
    """The figures as a section of the card."""
    names = ["bits per byte of", "bytes", "model" if quality.parsing else "model (upper bound)", "perplexity per token"]
    names += ["token 1-gram", "token 5-gram", "token 5-gram, own kind", "byte 5-gram", "below token 5-gram"]
    rows = [[*names, "below byte 5-gram"], ["---"] * (len(names) + 1)]
    for bits in quality.bits_per_byte:
        figures = (bits.model, bits.perplexity, bits.unigram, bits.token_ngram, bits.domain_ngram, bits.byte_ngram)
        shares = (bits.below_token, bits.below_byte)
        rows.append([f"held-out {bits.text}", f"{bits.num_bytes:,}", *(f"{figure:.3f}" for figure in figures)])
        rows[-1] += [f"{share:.1%}" for share in shares]
    lines = [HEADING, "", *(f"| {' | '.join(row)} |" for row in rows), "", _NGRAMS]
    siblings = [f"{bits.causal:.3f} on {bits.text}" for bits in quality.bits_per_byte if bits.causal is not None]
    if siblings:
        lines += ["", f"The causal model that it started from: {', '.join(siblings)}."]
    if parsing := quality.parsing:
        lines += [
            "",
            f"Of {parsing.num} completions of held-out library functions (temperature {parsing.temperature}, up to 120 "
            f"tokens) {parsing.strict:.1%} parse when cut at the last complete line, and {parsing.statement:.1%} "
            "when a last statement that the token limit left open is dropped.",
        ]
    if quality.agreement:
        lines += ["", "| agreement with the target | same top token | overlap of distributions |", "|---|---|---|"]
        lines += [f"| held-out {row.text} | {row.same_top:.1%} | {row.overlap:.1%} |" for row in quality.agreement]
    return "\n".join(lines) + "\n"


def write_card(directory: Path, quality: Quality) -> None:
    """Put the figures into the directory's card, in place of earlier ones."""
    note_in_card(directory, describe(quality))


def note_in_card(directory: Path, figures: str) -> None:
    """Put a section that begins with `HEADING` at the end of a directory's card, in place of an earlier one."""
    path = directory / "card.md"
    text = path.read_text(encoding="utf-8").split(HEADING)[0].rstrip()
    path.write_text(f"{text}\n\n{figures}", encoding="utf-8")


def measure(directory: Path, tokenizer: Tokenizer, held: Sequence[HeldOut], count: int = 200) -> Quality:
    """Measure one zoo directory and note the figures in its card."""
    network = load_network(directory)
    sibling = directory.parent / directory.name.split("-")[0]
    causal = None if network.shape.causal or not sibling.is_dir() else load_network(sibling)
    bits = [measure_bits(network, text, causal) for text in held]
    log.info("%s: %s", directory.name, bits)
    parsing = measure_parsing(network, tokenizer, count=count)[0] if network.shape.causal else None
    target = directory.parent / directory.name.removesuffix("-draft")
    agreement = []
    if target != directory and network.shape.causal and target.is_dir():
        agreement = [measure_agreement(network, load_network(target), text) for text in held]
    quality = Quality(model=directory.name, bits_per_byte=bits, parsing=parsing, agreement=agreement)
    write_card(directory, quality)
    return quality


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.quality", description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--count", type=int, default=200, help="completions")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more pay off on an idle machine only")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.basicConfig(level=logging.INFO)
    return guarded(lambda _: _measure_all(given), [])


def _measure_all(given: argparse.Namespace) -> int:
    tokenizer = load_tokenizer(given.directories[0])
    held = baselines(tokenizer, find_data(given.data))
    results = [measure(directory, tokenizer, held, given.count) for directory in given.directories]
    text = json.dumps([asdict(result) for result in results], indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
