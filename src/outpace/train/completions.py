"""Completions of held-out library code: where prompts are cut, how a completion ends, and whether the two parse."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .data import EOS_ID
from .network import Llama, Past
from .sources import held_out_library


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
    past: list[Past] = [[] for _ in range(network.shape.layers)]
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
