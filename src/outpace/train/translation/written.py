"""Targets that a parent writes: distillation at the level of sequences.

Kim and Rush (2016), "Sequence-level knowledge distillation", section 3.2, with the parent's greedy text for its beam's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from outpace.errors import ConfigError
from outpace.train.pairs import Pair

from .look import translate_all
from .network import PairNetwork

__all__ = ["read_written", "store_of", "written_pairs"]


def store_of(teacher: str, out: Path) -> Path:
    """Return where the texts of a recipe's model are kept: beside `out`, since one that ships lies in the package."""
    return out.resolve().parent / teacher / "written"


def written_pairs(
    network: PairNetwork,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    path: Path,
    device: torch.device,
    *,
    rows: int = 512,
    most: int = 96,
) -> list[Pair]:
    """Return the pairs with the targets that a network writes.

    They are kept in `path`, one JSON list (source, target) a line, after a line that tells which network wrote them. A
    run that was stopped goes on where the file ends; another network's file, or other sources, are written anew.

    Args:
        network: the parent.
        tokenizer: of both sides.
        pairs: their sources are translated.
        path: the file.
        device: where the parent is.
        rows: sources between two writes.
        most: tokens of the longest target.
    """
    # Long sources last: a run that was stopped has written whole batches of one length.
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]))
    mark = json.dumps({"parent": _fingerprint(network), "sources": len(pairs)})
    done = _read(path, mark)
    if [source for source, _ in done] != [pairs[index][0] for index in order[: len(done)]]:
        done = []
    _rewrite(path, mark, done)
    starts = range(len(done), len(order), rows)
    with path.open("a", encoding="utf-8") as file:
        for start in track(starts, description="writing", console=Console(stderr=True), transient=True):
            sources = [pairs[index][0] for index in order[start : start + rows]]
            texts = translate_all(network, tokenizer, sources, device, most)
            done += zip(sources, texts, strict=True)
            file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in zip(sources, texts, strict=True))
            file.flush()
    targets = dict(zip(order, done, strict=True))
    return [targets[index] for index in range(len(pairs))]


def _fingerprint(network: PairNetwork) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        digest.update(name.encode() + weight.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path, mark: str) -> list[Pair]:
    """Return the whole lines of a file that begins with `mark`."""
    if not path.is_file():
        return []
    first, *lines = path.read_text(encoding="utf-8").split("\n")
    return [(source, target) for source, target in map(json.loads, lines[:-1])] if first == mark else []


def read_written(path: Path) -> list[Pair]:
    """Return the pairs of a file of `written_pairs`, in its order.

    Raises:
        ConfigError: when it is not such a file.
    """
    try:
        mark, *lines = path.read_text(encoding="utf-8").split("\n")
        if "parent" not in json.loads(mark):
            raise ValueError
        return [(source, target) for source, target in map(json.loads, lines[:-1])]
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} holds no texts that a teacher wrote.", "Name a file of RUN/written.") from error


def _rewrite(path: Path, mark: str, done: Sequence[Pair]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part, lines = path.with_suffix(".part"), [mark, *(json.dumps(pair, ensure_ascii=False) for pair in done)]
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    part.replace(path)
