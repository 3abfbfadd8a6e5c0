"""Distilling a hidden Markov model from a model's own texts, for `--law hmm`.

The states begin as clusters of the model's hidden states, by which the next token is told (latent variable
distillation, Liu et al. 2023, arXiv 2210.04398); then expectation maximisation, in batches of texts, makes the texts
likelier. Everything is computed in float32, sums of counts in float64.

    python -m outpace.train.hmm --model stories --out DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.errors import StorageError
from outpace.failures import guarded
from outpace.laws.markov import Markov
from outpace.train.drafter.states import forward_states
from outpace.types import Adapter, Outputs

__all__ = ["Counts", "as_markov", "cluster", "expect", "main", "read_texts", "refine", "sample_texts"]

_FLOOR = 1e-3  # of a state's mass, for all tokens alike: whatever is asked for must be possible
_BATCH = 64  # texts of a forward-backward pass


@dataclass(slots=True)
class Counts:
    """Expected counts, and what they were counted under: the log-likelihood of the texts.

    Attributes:
        first: [S] of states that begin a text.
        move: [S, S] of a state followed by another.
        emit: [V, S] of tokens with states.
        log_likelihood: in nats, of all tokens.
    """

    first: Tensor
    move: Tensor
    emit: Tensor
    log_likelihood: float = 0.0

    @classmethod
    def none(cls, num_states: int, vocab_size: int) -> Counts:
        """Return counts of nothing."""
        shapes = ((num_states,), (num_states, num_states), (vocab_size, num_states))
        first, move, emit = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        return cls(first, move, emit)

    def __iadd__(self, other: Counts) -> Counts:
        self.first += other.first
        self.move += other.move
        self.emit += other.emit
        self.log_likelihood += other.log_likelihood
        return self


def sample_texts(lm: LanguageModel, count: int, length: int, seed: int) -> list[list[int]]:
    """Return texts that a model writes from its start token at temperature 1, as ids, the start included."""
    assert lm.tokenizer is not None
    start, texts = lm.encode("") or [lm.end_tokens[0]], list[list[int]]()
    while len(texts) < count:
        number, most = min(64, count - len(texts)), length - len(start)
        found = lm.generate(start, num_samples=number, temperature=1.0, max_tokens=most, seed=seed + len(texts))
        texts += [[*start, *result.tokens] for result in (found if isinstance(found, list) else [found])]
    return texts


def cluster(target: Adapter, texts: list[list[int]], num_states: int, seed: int) -> list[list[int]]:
    """Return a state per token: the cluster (k-means) of the hidden state that its law is read from."""
    states = [part for batch in _batches(texts, 16) for part in _states(target, batch)]
    everything = torch.cat(states)
    generator = torch.Generator().manual_seed(seed)
    sample = everything[torch.randperm(len(everything), generator=generator)[: 100 * num_states]]
    centres = sample[:num_states].clone()
    for _ in range(12):
        nearest = _nearest(sample, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
        count = torch.bincount(nearest, minlength=num_states).unsqueeze(1)
        centres = torch.where(count > 0, sums / count.clamp(min=1), centres)
    return [[0, *_nearest(part, centres).tolist()][: len(text)] for text, part in zip(texts, states, strict=True)]


def _states(target: Adapter, texts: list[list[int]]) -> list[Tensor]:
    """Return of each text the normalised hidden states [T - 1, H] behind all tokens but the last."""
    found = forward_states(target, texts, Outputs(has_last=True, has_logits=False)).float()
    return [torch.nn.functional.normalize(row[: len(text) - 1], dim=-1) for row, text in zip(found, texts, strict=True)]


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    half = centres.square().sum(1) / 2
    return torch.cat([(part @ centres.mT - half).argmax(1) for part in points.split(8192)])


def _batches(texts: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    for at in range(0, len(texts), size):
        yield texts[at : at + size]


def hard_counts(texts: list[list[int]], states: list[list[int]], num_states: int, vocab_size: int) -> Counts:
    """Return the counts of texts whose states are given."""
    found = Counts.none(num_states, vocab_size)
    for text, own in zip(texts, states, strict=True):
        ids, z = torch.tensor(text), torch.tensor(own)
        found.first[z[0]] += 1
        found.move.index_put_((z[:-1], z[1:]), torch.ones(len(z) - 1, dtype=torch.float64), accumulate=True)
        found.emit.index_put_((ids, z), torch.ones(len(z), dtype=torch.float64), accumulate=True)
    return found


def as_markov(counts: Counts, pseudo: float = 0.01, floor: float = _FLOOR) -> Markov:
    """Return the model that makes counts likeliest, with `pseudo` counts of moves and a floor under emissions."""
    first, move = counts.first + pseudo, counts.move + pseudo
    emit = counts.emit + pseudo / len(counts.emit)
    law = emit / emit.sum(0) * (1 - floor) + floor / len(emit)
    tables = (first / first.sum(), move / move.sum(1, keepdim=True), law)
    return Markov(*(table.float().numpy() for table in tables))


def expect(model: Markov, texts: list[list[int]]) -> Counts:
    """Return expected counts of texts under a model, by the forward and the backward pass."""
    first, move, emit = (torch.from_numpy(table) for table in (model.first, model.move, model.emit))
    size, rows = max(map(len, texts)), len(texts)
    ids, lengths = torch.zeros(rows, size, dtype=torch.int64), torch.tensor([len(text) for text in texts])
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    real = torch.arange(size) < lengths.unsqueeze(1)
    seen = torch.where(real.unsqueeze(-1), emit[ids], emit.new_ones(()))  # [B, T, S]; beyond the end nothing is seen
    ahead, total = [], torch.zeros(rows, dtype=torch.float64)
    law = first.expand(rows, -1)
    for at in range(size):
        joint = law * seen[:, at]
        mass = joint.sum(-1, keepdim=True)
        total += torch.where(real[:, at], mass[:, 0].double().log(), 0.0)
        ahead.append(joint / mass)
        law = ahead[-1] @ move
    found = Counts.none(len(first), len(emit))
    found.log_likelihood = float(total.sum())
    back, pairs = torch.ones_like(law), torch.zeros_like(move)
    for at in range(size - 1, -1, -1):
        both = ahead[at] * back
        both = both / both.sum(-1, keepdim=True) * real[:, at, None]
        found.emit.index_add_(0, ids[:, at], both.double())
        if at == 0:
            found.first += both.double().sum(0)
            break
        given = seen[:, at] * back
        scale = ((ahead[at - 1] @ move) * given).sum(-1, keepdim=True)
        pairs += (ahead[at - 1] * real[:, at, None] / scale).mT @ given
        back = given @ move.mT
        back = back / back.amax(-1, keepdim=True)
    found.move += (pairs * move).double()
    return found


def refine(model: Markov, texts: list[list[int]], pseudo: float = 0.01, floor: float = _FLOOR) -> tuple[Markov, float]:
    """Return a likelier model by one round over all texts, and nats per token under the one given."""
    counts = Counts.none(model.num_states, model.vocab_size)
    for batch in _batches(sorted(texts, key=len), _BATCH):
        counts += expect(model, batch)
    return as_markov(counts, pseudo, floor), -counts.log_likelihood / sum(map(len, texts))


def main(arguments: list[str] | None = None) -> int:
    """Write texts, distil, save; prints nats per token after each round, of held-out texts at the end."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.hmm", description=__doc__)
    parser.add_argument("--model", default="stories", help="the model whose texts are distilled")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--states", type=int, default=256)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--length", type=int, default=128, help="tokens of a text, at most")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    lm = load(given.model)
    texts = _texts(lm, given.out / "texts.npz", given)
    held, texts = texts[: len(texts) // 20], texts[len(texts) // 20 :]
    vocab = lm.target.capabilities.vocab_size
    model = as_markov(hard_counts(texts, cluster(lm.target, texts, given.states, given.seed), given.states, vocab))
    for number in range(given.rounds):
        model, nats = refine(model, texts)
        print(f"round {number + 1}: {nats:.4f} nats per token", flush=True)
        model.save(given.out)
    own = [-value for scored in lm.score(held) for value in scored.log_probs if value is not None]
    count, nats = sum(map(len, held)), -sum(expect(model, batch).log_likelihood for batch in _batches(held, _BATCH))
    print(f"held out: {nats / count:.4f} nats per token, the model itself {float(np.mean(own)):.4f}")
    return 0


def _texts(lm: LanguageModel, file: Path, given: argparse.Namespace) -> list[list[int]]:
    """Return the model's texts, from a file where they were written before."""
    if not file.is_file():
        texts = sample_texts(lm, given.texts, given.length, given.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, tokens=np.concatenate(texts).astype(np.int32), lengths=[len(t) for t in texts])
    return read_texts(file)


def read_texts(file: Path) -> list[list[int]]:
    """Return the texts of a file that a distillation wrote.

    Raises:
        StorageError: it is not there, or holds something else.
    """
    try:
        read = np.load(file)
        return [part.tolist() for part in np.split(read["tokens"], np.cumsum(read["lengths"])[:-1])]
    except (OSError, KeyError, ValueError) as error:
        raise StorageError(f"{file} holds no texts: {error}", "outpace.train.hmm writes them.") from error


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
