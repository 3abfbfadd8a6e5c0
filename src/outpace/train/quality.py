"""How good a model of the zoo is: bits per byte against n-gram models, and completions of library code that parse.

Run `python -m outpace.train.quality DIR [--data DIR] [--json FILE]`. The figures go into DIR's card too.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import logging
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from outpace.errors import OutpaceError

from .data import EOS_ID, MASK_ID, encode_stream, find_data, read_documents
from .export import load_network
from .network import Llama, Past
from .ngram import Ints, NGram
from .sources import SOURCES, held_out_library, held_out_stories

log = logging.getLogger("outpace.train")
HEADING = "## Quality"
# The byte that ends a document for the byte-level n-gram model, beside the 256 that text can hold.
BYTE_END = 256
GATE, PARSE_GATE = 0.25, 0.60


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsPerByte:
    """Bits per byte of one held-out text under a model and under the n-gram models.

    Attributes:
        text: `stories` or `library`.
        num_bytes: Size of the text in UTF-8 bytes.
        model: The model's own.
        token_ngram: Order-5 Kneser-Ney over the model's tokens, trained on all sources.
        byte_ngram: The same over bytes.
        domain_ngram: As `token_ngram`, but trained on the sources of this kind of text alone.
        saved: Share by which the model is below the best of the three n-gram models.
    """

    text: str
    num_bytes: int
    model: float
    token_ngram: float
    byte_ngram: float
    domain_ngram: float
    saved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsing:
    """Completions of held-out library code.

    Attributes:
        num: Completions.
        temperature: Sampling temperature.
        strict: Share that parses when cut at the last complete line.
        statement: Share that parses when a last statement that the token limit left open is dropped too.
    """

    num: int
    temperature: float
    strict: float
    statement: float


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


@torch.inference_mode()
def masked_bits(network: Llama, stream: Ints, samples: int = 8) -> float:
    """Upper bound (MDLM) in bits on `stream` cut into windows of the context, averaged over `samples` mask rates."""
    generator = torch.Generator().manual_seed(0)
    tokens, total = torch.from_numpy(stream.astype(np.int64)), 0.0
    for start in range(0, len(tokens), network.shape.context):
        piece = tokens[start : start + network.shape.context]
        rates = (torch.arange(samples) + torch.rand((samples,), generator=generator)) / samples
        rates = rates.clamp_min(1.0 / len(piece))
        for rate in rates:
            # A fixed number of masked positions for each rate: the same expectation, less noise.
            order = torch.rand((len(piece),), generator=generator).argsort()
            hidden = order[: max(1, int(len(piece) * rate + 0.5))]
            logits = network(piece.index_fill(0, hidden, MASK_ID)[None])[0, hidden]
            logits[:, MASK_ID] = -torch.inf
            total += float(F.cross_entropy(logits, piece[hidden])) * len(piece) / samples
    return total / float(np.log(2))


def byte_stream(documents: Sequence[str]) -> Ints:
    """Documents as bytes with an end symbol before each and after the last."""
    pieces = [np.array([BYTE_END], dtype=np.int64)]
    for text in documents:
        pieces += [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64), pieces[0]]
    return np.concatenate(pieces)


def measure_bits(network: Llama, tokenizer: Tokenizer, data: Path) -> list[BitsPerByte]:
    """Bits per byte on held-out stories and held-out library files."""
    texts = {"stories": held_out_stories(data), "library": [text for _, text in held_out_library()]}
    kinds = {"stories": "tinystories", "library": "python-library"}
    documents = dict(zip((source.name for source in SOURCES), read_documents(SOURCES, data), strict=True))
    streams = {name: encode_stream(tokenizer, held).astype(np.int64) for name, held in texts.items()}
    sizes = {name: sum(len(text.encode()) for text in held) for name, held in texts.items()}
    everything = [text for source in documents.values() for text in source]
    vocab = network.shape.vocab

    tokens = NGram(encode_stream(tokenizer, everything).astype(np.int64), 5, vocab)
    by_token = {name: float(tokens.bits(stream).sum()) for name, stream in streams.items()}
    del tokens
    log.info("token n-gram: %s", by_token)
    octets = NGram(byte_stream(everything), 5, BYTE_END + 1)
    by_byte = {name: float(octets.bits(byte_stream(texts[name])).sum()) for name in texts}
    del octets
    log.info("byte n-gram: %s", by_byte)
    results = []
    for name, stream in streams.items():
        own = [text for source, held in documents.items() if source.startswith(kinds[name]) for text in held]
        domain = float(NGram(encode_stream(tokenizer, own).astype(np.int64), 5, vocab).bits(stream).sum())
        bits = causal_bits(network, stream) if network.shape.causal else masked_bits(network, stream)
        best = min(by_token[name], by_byte[name], domain)
        results.append(
            BitsPerByte(
                text=name,
                num_bytes=sizes[name],
                model=bits / sizes[name],
                token_ngram=by_token[name] / sizes[name],
                byte_ngram=by_byte[name] / sizes[name],
                domain_ngram=domain / sizes[name],
                saved=1 - bits / best,
            )
        )
        log.info("%s", results[-1])
    return results


def prompts(files: Sequence[tuple[str, str]], tokenizer: Tokenizer, count: int, room: int) -> list[tuple[str, int]]:
    """Cut held-out files inside functions: (prompt, indentation of the function), at most `room` tokens each.

    A prompt starts at the earliest top-level statement that leaves it short enough. It ends after the first statement
    of a function's body (often the docstring), and for bodies of four or more also after the middle one. `count` of
    them are taken, evenly spaced over all files.
    """
    found = []
    for _, text in files:
        module = ast.parse(text)
        lines = text.split("\n")
        starts = [min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) for node in module.body]
        for node, last in _cuts(module):
            for start in (start for start in starts if start <= node.lineno):
                prompt = "\n".join(lines[start - 1 : last.end_lineno]) + "\n"
                if len(tokenizer.encode(prompt).ids) <= room and _parses(prompt):
                    found.append((prompt, node.col_offset))
                    break
    return [found[int(place)] for place in np.linspace(0, len(found) - 1, min(count, len(found)))]


def _cuts(module: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.stmt]]:
    """Pairs of a function and the statement of its body that a prompt may end with."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) >= 2:
            yield node, node.body[0]
            if len(node.body) >= 4:
                yield node, node.body[len(node.body) // 2]


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


@torch.inference_mode()
def complete(network: Llama, ids: list[int], limit: int, temperature: float, generator: torch.Generator) -> list[int]:
    """Sample up to `limit` tokens after `ids`, up to the end of text."""
    past = [Past() for _ in range(network.shape.layers)]
    window, written = torch.tensor([ids]), list[int]()
    for _ in range(limit):
        logits: Tensor = network.project(network.hidden(window, past)[0, -1])
        token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        if token == EOS_ID:
            break
        written.append(token)
        window = torch.tensor([[token]])
    return written


def cut_block(completion: str, indent: int, is_whole: bool) -> str:
    """The lines of a completion that belong to the function it continues.

    The cut never looks at whether the code is right: it drops an unfinished last line (unless the model ended the text
    itself), and everything from the first line on that is indented no deeper than the function and so left it. Lines
    inside a bracket or a string that look so are cut as well, which can only make the result worse.
    """
    lines = completion.split("\n")
    kept = lines if is_whole else lines[:-1]
    for index, line in enumerate(kept):
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            return "\n".join(kept[:index]) + "\n"
    return "\n".join(kept) + "\n"


def drop_open_statement(prompt: str, completion: str) -> str:
    """Without the last statement of `completion` when the token limit left it open: a bracket, a string or a body.

    The error must be that the text ended: any other error stays.
    """
    lines = completion.split("\n")
    while lines:
        text = prompt + "\n".join(lines) + "\n"
        if _parses(text) or not _ends_open(text):
            break
        lines.pop()
    return "\n".join(lines) + "\n"


def _ends_open(text: str) -> bool:
    """Whether a text is a proper start whose last statement lacks its end."""
    try:
        list(tokenize.generate_tokens(io.StringIO(text).readline))
    except tokenize.TokenError:
        return True
    except (SyntaxError, ValueError):
        return False
    # A header without a body is open when a body would make it right.
    last = text.rstrip().split("\n")[-1]
    body = " " * (len(last) - len(last.lstrip()) + 4) + "pass\n"
    return last.rstrip().endswith(":") and _parses(text.rstrip() + "\n" + body)


def measure_parsing(
    network: Llama, tokenizer: Tokenizer, *, count: int = 200, limit: int = 120, temperature: float = 0.5
) -> tuple[Parsing, list[str]]:
    """Complete held-out library functions and parse prompt and completion together.

    A completion that leaves the function at once adds nothing, so it counts as a failure.
    """
    room = network.shape.context - limit - 1
    strict = statement = 0
    texts = []
    cases = prompts(held_out_library(), tokenizer, count, room)
    for index, (prompt, indent) in enumerate(cases):
        generator = torch.Generator().manual_seed(index)
        ids = complete(network, [EOS_ID, *tokenizer.encode(prompt).ids], limit, temperature, generator)
        block = cut_block(tokenizer.decode(ids), indent, is_whole=len(ids) < limit)
        shorter = drop_open_statement(prompt, block)
        is_strict = bool(block.strip()) and _parses(prompt + block)
        strict += is_strict
        statement += is_strict or (bool(shorter.strip()) and _parses(prompt + shorter))
        texts.append(block)
    num = len(cases)
    return Parsing(num=num, temperature=temperature, strict=strict / num, statement=statement / num), texts


def write_card(directory: Path, bits: Sequence[BitsPerByte], parsing: Parsing | None) -> None:
    """Put the figures into the directory's card, in place of earlier ones."""
    path = directory / "card.md"
    text = path.read_text(encoding="utf-8").split(HEADING)[0].rstrip()
    kind = "model" if parsing else "model (upper bound)"
    lines = [
        HEADING,
        "",
        f"| held-out text | bytes | {kind} | token 5-gram | token 5-gram, own kind | byte 5-gram | below the best |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.text} | {row.num_bytes:,} | {row.model:.3f} | {row.token_ngram:.3f} | {row.domain_ngram:.3f} "
            f"| {row.byte_ngram:.3f} | {row.saved:.1%} |"
            for row in bits
        ),
        "",
        "Bits per byte; the n-gram models are interpolated modified Kneser-Ney on the same training texts.",
    ]
    if parsing:
        lines += [
            "",
            f"Of {parsing.num} completions of held-out library functions (temperature {parsing.temperature}, up to 120 "
            f"tokens) {parsing.strict:.1%} parse when cut at the last complete line, and {parsing.statement:.1%} "
            "when a last statement that the token limit left open is dropped.",
        ]
    path.write_text(text + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def measure(directory: Path, data: Path | None = None, count: int = 200) -> dict[str, Any]:
    """Measure a zoo directory, note the figures in its card, and return them."""
    network = load_network(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    bits = measure_bits(network, tokenizer, find_data(data))
    parsing = measure_parsing(network, tokenizer, count=count)[0] if network.shape.causal else None
    write_card(directory, bits, parsing)
    is_good = all(row.saved >= GATE for row in bits) and (parsing is None or parsing.strict >= PARSE_GATE)
    return {
        "model": directory.name,
        "bits_per_byte": [asdict(row) for row in bits],
        "parsing": asdict(parsing) if parsing else None,
        "reaches_targets": is_good,
    }


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.quality", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--count", type=int, default=200, help="completions")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    try:
        result = json.dumps(measure(given.directory, given.data, given.count), indent=2)
    except OutpaceError as error:
        print(f"outpace: {error}\n{error.hint}", file=sys.stderr)
        return error.exit_status
    print(result)
    if given.json:
        given.json.write_text(result + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
