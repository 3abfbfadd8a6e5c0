"""How many tokens of a text do one or two input embeddings hold, for a frozen model that says them all in one forward?

    python -m outpace.bench.one_step --lengths 4,8,16,32 --texts 4

A causal model reads one vector, and behind it another vector again and again, as many places as the text has tokens;
the output at each place has to name the text's token there. Only the two vectors are changed, by descent, for each
text. With one vector all places read the same, and a mean of equal values is that value whatever its weights: under
rotary positions all outputs are then one, and name one token.

Source: Mezentsev and Oseledets (2025), Exploring the Latent Capacity of LLMs for One-Step Text Generation, arXiv
2505.21189. Differences: a small model, and short texts; both vectors belong to one text, where the paper also shares
the second among texts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.bench.command import new_parser, numbers, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.papers import Paper
from outpace.train.network import Llama

__all__ = ["PAPERS", "laid", "main", "reconstruct", "run_one_step"]

PAPERS = (
    Paper(
        "Exploring the Latent Capacity of LLMs for One-Step Text Generation",
        "Mezentsev and Oseledets",
        2025,
        "2505.21189",
        70,
        "A second embedding that many texts share.",
        "python -m outpace.bench.one_step --lengths 8 --texts 2",
    ),
)


def laid(vectors: Tensor, length: int) -> Tensor:
    """Return the inputs [B, length, hidden] of vectors [B, 1 or 2, hidden]: the first once, then the last."""
    rest = vectors[:, -1:].expand(-1, length - 1, -1)
    return torch.cat([vectors[:, :1], rest], 1)


def reconstruct(network: Llama, texts: Tensor, count: int, steps: int, seed: int, rate: float = 0.02) -> Tensor:
    """Return the tokens [B, T] that the model names at each place after its vectors were fitted to texts [B, T].

    Each text has its own vectors; the best of all steps counts, by tokens that are right.

    Args:
        network: a causal model; its weights do not change.
        texts: int64.
        count: vectors of a text, 1 or 2.
        steps: of descent.
        seed: of the first vectors.
        rate: of Adam, relative to the size of embeddings.
    """
    table = network.model.embed_tokens.weight.detach()
    scale = float(table.std())
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(len(texts), count, table.shape[1], generator=generator) * scale
    # The size is learned beside a vector of about 1: steps of Adam have one length for all numbers.
    vectors = (first / scale).to(table.device).requires_grad_(True)
    optimiser = torch.optim.Adam([vectors], lr=rate, betas=(0.9, 0.9))
    length = texts.shape[1]
    best, named = torch.full((len(texts),), -1, device=texts.device), torch.zeros_like(texts)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        logits = network.project(network.hidden(texts, inputs=laid(vectors * scale, length)))
        with torch.no_grad():
            said = logits.argmax(-1)
            right = (said == texts).sum(1)
            is_better = right > best
            best, named = torch.where(is_better, right, best), torch.where(is_better[:, None], said, named)
        if bool((best == length).all()):
            break
        loss = F.cross_entropy(logits.flatten(0, 1), texts.flatten())
        (gradient,) = torch.autograd.grad(loss, vectors)
        vectors.grad = gradient
        optimiser.step()
    return named


def run_one_step(
    model: str, data: Path | None, lengths: Sequence[int], count: int, steps: int, seed: int = 0
) -> Report:
    """Fit one and two vectors to beginnings of held-out stories.

    Args:
        model: a causal Llama that `outpace train` made.
        data: folder of public texts.
        lengths: tokens of the texts.
        count: texts of each length.
        steps: of descent, for each.
        seed: of the first vectors.

    Raises:
        ConfigError: a length below 2, no text or no step, or a model that is not causal.
        ModelError: a directory that `outpace train` did not write.
    """
    from outpace.models.loading import resolve
    from outpace.train.data import find_data
    from outpace.train.export import load_network, load_tokenizer
    from outpace.train.sources import held_out_stories

    if not lengths or min(lengths) < 2 or count < 1 or steps < 1:
        raise ConfigError("A text has 2 tokens or more.", "Ask for texts and steps, 1 or more of each.")
    directory = resolve(model)
    network, tokenizer = load_network(directory).requires_grad_(False), load_tokenizer(directory)
    if not network.shape.causal:
        raise ConfigError(f"{model} does not write from left to right.", "Use a causal model, such as stories.")
    encoded = [tokenizer.encode(text).ids for text in held_out_stories(find_data(data))]
    rows = []
    for length in lengths:
        texts = torch.tensor([ids[:length] for ids in encoded if len(ids) >= length][:count])
        if not len(texts):
            raise ConfigError(f"No story has {length} tokens.", "Ask for shorter ones.")
        for vectors in (1, 2):
            right = reconstruct(network, texts, vectors, steps, seed) == texts
            whole = float(right.all(1).float().mean())
            rows.append({"tokens": length, "vectors": vectors, "right": float(right.float().mean()), "whole": whole})
    cells = [[str(r["tokens"]), str(r["vectors"]), f"{r['right']:.1%}", f"{r['whole']:.0%}"] for r in rows]
    table = Table("", ("tokens", "vectors", "tokens that are right", "texts that are whole"), cells)
    asked = {"model": model, "texts": count, "steps": steps, "seed": seed}
    return new_report("one-step", asked, describe(), rows, tables=[table])


def _work(given: argparse.Namespace) -> None:
    report = run_one_step(given.model, given.data, given.lengths, given.texts, given.steps, given.seed)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("one_step", __doc__, threads=1)
    parser.add_argument("--model", default="stories", help="a causal Llama of ours (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--lengths", type=numbers, default=[4, 8, 16, 32], help="tokens (default: 4,8,16,32)")
    parser.add_argument("--texts", type=int, default=4, help="of each length (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of descent (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first vectors")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
