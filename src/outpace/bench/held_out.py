"""Perplexity of causal models on stories that none was trained on, with and without a continuous cache.

    python -m outpace.bench.held_out stories --data data
    python -m outpace.bench.held_out stories --texts english --law plugin:model=runs/stories-plugin --data data

A continuous cache (Grave, Joulin and Usunier, 2017, arXiv 1612.04426) keeps the last hidden states of the text so far,
each with the token that followed it; a token's law is mixed with the share that states like the present one give to the
tokens behind them. No weight is trained. Its strength and share are chosen on the first third of the tokens, and all
figures are those of the rest. A law that takes the model's place is measured without a cache, beside the model alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.types import Adapter, Outputs

__all__ = ["cache_log_probs", "main", "run_held_out", "text_states"]

STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)  # of a product of states, both divided by the root of their mean square
SHARES = (0.05, 0.1, 0.2, 0.3)
_CHUNK = 256  # tokens per forward


@torch.no_grad()
def text_states(
    target: Adapter, ids: Sequence[int], has_states: bool = True, length: int = 4096
) -> tuple[Tensor, Tensor]:
    """Return [T - 1] log-probabilities of a text's tokens but the first, and [T - 1, hidden] the states before them.

    Where the text is longer than the context, or than `length`, it is read in pieces, each without what stands before
    it. Without `has_states` there are [T - 1, 0].
    """
    most = min(target.capabilities.max_positions, length)
    found, states = list[Tensor](), list[Tensor]()
    for begin in range(0, len(ids) - 1, most - 1):
        piece = list(ids[begin : begin + most])
        cache = target.new_cache(1, len(piece) + _CHUNK)
        for at in range(0, len(piece) - 1, _CHUNK):
            read = torch.tensor([piece[at : min(at + _CHUNK, len(piece) - 1)]], device=cache.device)
            size = read.shape[1]
            places = torch.arange(at, at + size, device=cache.device)[None]
            scores = target.score(read, places, None, cache, outputs=Outputs(has_last=has_states))
            cache.keep([range(size)])
            after = torch.tensor(piece[at + 1 : at + 1 + size], device=cache.device)
            found.append(scores.logits[0].double().log_softmax(-1).gather(-1, after[:, None])[:, 0].cpu())
            last = scores.last[0] if has_states and scores.last is not None else torch.zeros(size, 0)
            states.append(last.double().cpu())
    return torch.cat(found), torch.cat(states)


def cache_log_probs(states: Tensor, tokens: Tensor, size: int, strengths: Sequence[float]) -> Tensor:
    """Return [S, T] the log-probability that the cache gives each token, for each strength; -inf where it is empty.

    Args:
        states: [T, hidden] before each token, float64.
        tokens: [T] int64.
        size: how many states are kept, the latest ones.
        strengths: factors on products of states.
    """
    scaled = states / states.square().mean().sqrt()
    rows = []
    for at in range(len(tokens)):
        first = max(0, at - size)
        alike = scaled[first:at] @ scaled[at]
        is_it = tokens[first:at] == tokens[at]
        weights = torch.tensor(strengths, dtype=torch.float64)[:, None] * alike
        rows.append(weights[:, is_it].logsumexp(-1) - weights.logsumexp(-1) if at else weights.sum(-1) - math.inf)
    return torch.stack(rows, 1)


def _mixed(plain: Tensor, cached: Tensor, share: float) -> Tensor:
    return torch.logaddexp(plain + math.log1p(-share), cached + math.log(share))


def _measure(name: str, texts: Sequence[str], most: int, size: int, law: str, length: int) -> dict[str, Any]:
    """Return a model's figures, in nats per token and bits per byte; under a law where one is given."""
    from outpace.api.engine import load
    from outpace.api.fusing import first_token
    from outpace.api.lawmaking import governed
    from outpace.api.scoring import check_causal

    lm = load(name, dtype="float32")
    check_causal(lm.target.capabilities)
    assert lm.tokenizer is not None
    begins, ids = first_token(lm), list[int]()
    for text in texts:
        ids += [begins, *lm.encode(text, is_special=False)]
        if len(ids) > most:
            break
    ids = ids[: most + 1]
    plain, states = text_states(governed(lm, law or None).target, ids, bool(size), length)
    rest = len(plain) // 3
    num_bytes = len(lm.tokenizer.decode(ids[rest + 1 :]).encode())
    row: dict[str, Any] = {
        "model": Path(name).name + (law and f", {law.split(':')[0]}"),
        "tokens": len(plain) - rest,
        "nats": -float(plain[rest:].mean()),
    }
    row["bits_per_byte"] = -float(plain[rest:].sum()) / math.log(2) / num_bytes
    if size:
        cached = cache_log_probs(states, torch.tensor(ids[1:]), size, STRENGTHS)
        tried = {
            (s, share): -float(_mixed(plain[:rest], cached[at, :rest], share).mean())
            for at, s in enumerate(STRENGTHS)
            for share in SHARES
        }
        (strength, share), _ = min(tried.items(), key=lambda item: item[1])
        mixed = _mixed(plain[rest:], cached[STRENGTHS.index(strength), rest:], share)
        row |= {"nats_with_cache": -float(mixed.mean()), "strength": strength, "share": share}
    return row


def run_held_out(
    models: Sequence[str],
    data: Path | None,
    most: int = 12_000,
    size: int = 1000,
    texts: str = "stories",
    law: str = "",
    length: int = 4096,
) -> Report:
    """Measure models side by side, each alone and then under a law where one is given.

    Args:
        models: names or directories of causal models with tokenizers.
        data: folder of texts, which holds those that are read.
        most: tokens that are read.
        size: states in the cache; 0 = no cache.
        texts: "stories", or "english": short sentences that no recipe trains on.
        law: that takes the models' place, as `--law` gives it.
        length: of the pieces that are read, where contexts are longer.

    Raises:
        ConfigError: fewer than 30 tokens, pieces of fewer than 2, or a negative size.
        CapabilityError: a model that does not write from left to right.
    """
    from outpace.train.data import find_data
    from outpace.train.sources import held_out_english, held_out_stories

    if most < 30 or size < 0:
        raise ConfigError(f"{most} tokens and {size} states were asked for.", "Read 30 tokens or more; 0 = no cache.")
    if length < 2:
        raise ConfigError(f"Pieces of {length} tokens say nothing.", "Read pieces of 2 tokens or more.")
    read = {"stories": held_out_stories, "english": held_out_english}[texts](find_data(data))
    rows = [
        _measure(name, read, most, 0 if one else size, one, length)
        for name in models
        for one in (("", law) if law else ("",))
    ]

    def told(row: dict[str, Any]) -> list[str]:
        has = "nats_with_cache" in row
        more = (
            [f"{math.exp(row['nats_with_cache']):.2f}", f"{row['strength']:g}, {row['share']:g}"] if has else ["", ""]
        )
        return [
            row["model"],
            f"{row['nats']:.3f}",
            f"{math.exp(row['nats']):.2f}",
            f"{row['bits_per_byte']:.3f}",
            *more,
        ]

    heads = ("model", "nats per token", "perplexity", "bits per byte", "perplexity with cache", "strength, share")
    asked = {"models": [Path(name).name for name in models], "tokens": most, "cache": size, "texts": texts}
    asked["length"] = length
    of = {"stories": "Stories of TinyStories", "english": "English sentences of Tatoeba, each a text,"}[texts]
    notes = [f"{of} that no recipe trains on; of the tokens, the last two thirds."]
    return new_report(
        "held-out", asked, describe(), rows, tables=[Table("", heads, [told(r) for r in rows])], notes=notes
    )


def _work(given: argparse.Namespace) -> None:
    report = run_held_out(given.models, given.data, given.tokens, given.cache, given.texts, given.law, given.length)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("held_out", __doc__, threads=1)
    parser.add_argument("models", nargs="+", help="causal models, by name or directory")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--tokens", type=int, default=12_000, help="read of the stories (default: %(default)s)")
    parser.add_argument("--cache", type=int, default=1000, help="states in the cache, 0 = none (default: %(default)s)")
    parser.add_argument("--length", type=int, default=4096, help="of pieces, within contexts (default: %(default)s)")
    parser.add_argument("--texts", choices=("stories", "english"), default="stories", help="what is read")
    parser.add_argument("--law", default="", metavar="NAME:KEY=VALUE,...", help="each model under this law too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
