"""Train the cross-attention that reads neighbours (`outpace.methods.parallel.chunk_retrieval`); what it brings.

    python -m outpace.train.chunks --data DATA --out runs/chunks

Trained is the reader alone, beside a model that stays as it is, on dialogues (`sgd_dialogues`; for research) whose
neighbours come from other dialogues. Held-out losses: the model alone, with the nearest chunks, and with chunks drawn
by chance, which tell what is learnt of the kind of text and not read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.retrieve.chunks import ChunkIndex, ChunkReader
from outpace.retrieve.states import text_states

__all__ = ["ChunkData", "dialogues", "drawn_dialogues", "goes_on", "losses_of", "train_reader"]

_LONGEST_TEXT = 256  # tokens


def dialogues(data: Path, part: str) -> Iterator[str]:
    """Yield dialogues of a part (train, dev or test), a turn a line.

    Raises:
        ConfigError: the data set is not there.
    """
    file = data / "sgd_dialogues" / f"{part}.jsonl.gz"
    if not file.is_file():
        raise ConfigError(f"There is no {file.name} of sgd_dialogues.", "Name the folder of data sets with --data.")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield "\n".join(f"{turn['s']}: {turn['t']}" for turn in json.loads(line)["turns"])


def drawn_dialogues(data: Path, count: int, held_out: int) -> tuple[list[str], list[str]]:
    """Return dialogues for a collection and others, from all services; those held out come first in a fixed order."""
    every = list(dialogues(data, "train"))
    random.Random(0).shuffle(every)
    return every[held_out : held_out + count], every[:held_out]


class ChunkData:
    """Chunks of texts with the states that predict them, and what they read.

    Args:
        lm: the model.
        index: of the collection.
        texts: token ids.
        neighbours: chunks that each reads.
        is_own: the texts are the collection's own, so that none reads itself.
    """

    def __init__(
        self, lm: LanguageModel, index: ChunkIndex, texts: Sequence[Sequence[int]], neighbours: int, is_own: bool
    ) -> None:
        size, states, tokens, keys, owners = index.chunk, list[Tensor](), list[list[int]](), list[Tensor](), list[int]()
        for number, (text, held) in enumerate(zip(texts, text_states(lm.target, texts), strict=True)):
            for at in range(size, len(text) - size + 1, size):
                states.append(held[at - 1 : at + size - 1])  # they predict this chunk, and read by the one before
                tokens.append(list(text[at : at + size]))
                keys.append(index.key(text[at - size : at]))
                owners.append(number)
        self.index, self.states, self.tokens = index, torch.stack(states), torch.tensor(tokens)
        # Compiled heads give no gradient: the matrix is what they make of one state per column.
        columns = torch.eye(self.states.shape[-1], dtype=lm.target.dtype, device=lm.target.device)
        self.output = lm.target.head(columns).detach().float().cpu()
        but = torch.tensor(owners) if is_own else None
        self.nearest = index.nearest(torch.stack(keys), neighbours, but)

    def __len__(self) -> int:
        return len(self.tokens)

    def loss(self, reader: ChunkReader | None, chosen: Tensor, read: Tensor | None = None) -> Tensor:
        """Return the mean loss in nats of the tokens of some chunks; `read` = other neighbours than the nearest."""
        states = self.states[chosen]
        if reader is not None:
            states = reader(states, self.index.entries(self.nearest[chosen] if read is None else read))
        return F.cross_entropy((states @ self.output).flatten(0, 1), self.tokens[chosen].flatten())


@torch.no_grad()
def losses_of(reader: ChunkReader, data: ChunkData, seed: int = 0) -> dict[str, float]:
    """Return mean losses in nats per token: the model alone, with the nearest chunks, and with chunks by chance."""
    draw, found = torch.Generator().manual_seed(seed), {"alone": 0.0, "nearest": 0.0, "chance": 0.0}
    for part in torch.arange(len(data)).split(32):
        other = torch.randint(len(data.index), (len(part), reader.neighbours), generator=draw)
        share = len(part) / len(data)
        found["alone"] += share * float(data.loss(None, part))
        found["nearest"] += share * float(data.loss(reader, part))
        found["chance"] += share * float(data.loss(reader, part, other))
    return found


def goes_on(data: ChunkData, neighbours: int, seed: int = 0) -> dict[str, float]:
    """Return how often one of some neighbours goes on with the chunk's next token: the nearest ones, and by chance."""
    draw = torch.Generator().manual_seed(seed)
    chance = torch.randint(len(data.index), (len(data), neighbours), generator=draw)
    read = {"nearest": data.nearest[:, :neighbours], "chance": chance}
    first = data.tokens[:, :1]
    return {name: float((data.index.following(one) == first).any(1).float().mean()) for name, one in read.items()}


def train_reader(
    data: ChunkData, steps: int, neighbours: int, seed: int = 0, rate: float = 2e-3
) -> tuple[ChunkReader, list[float]]:
    """Return a reader trained on chunks, and the loss of every step."""
    torch.manual_seed(seed)
    reader, draw, losses = ChunkReader(data.states.shape[-1], data.index.chunk, neighbours), random.Random(seed), []
    optimiser = torch.optim.AdamW(reader.parameters(), lr=rate, weight_decay=0.05)
    for step in range(steps):
        chosen = torch.tensor(draw.sample(range(len(data)), min(24, len(data))))
        loss = data.loss(reader, chosen)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    return reader.eval(), losses


def main(arguments: list[str] | None = None) -> int:
    """Train, write reader.safetensors and losses.json, and print what retrieval brings."""
    parser = argparse.ArgumentParser(description="Train a reader of neighbours.")
    parser.add_argument("--model", default="stories", help="a causal model that gives its hidden states")
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--texts", type=int, default=300, help="dialogues of the collection, which are trained on too")
    parser.add_argument("--held-out", type=int, default=60, help="dialogues that the losses are of")
    parser.add_argument("--steps", type=int, default=300, help="of training; 0 = tell only what is found")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    asked = parser.parse_args(arguments)
    if min(asked.texts, asked.held_out) < 1 or asked.steps < 0:
        raise ConfigError("No dialogues, or fewer than 0 steps, were asked for.", "Ask for 1 or more dialogues.")
    torch.set_num_threads(1)
    lm, began, chunk, neighbours = load(asked.model), time.perf_counter(), 16, 2
    texts, held = drawn_dialogues(asked.data, asked.texts, asked.held_out)
    ids, kept = ([lm.encode(text)[:_LONGEST_TEXT] for text in part] for part in (texts, held))
    index = ChunkIndex(lm.target, ids, chunk)
    reader, losses = train_reader(ChunkData(lm, index, ids, neighbours, is_own=True), asked.steps, neighbours)
    reader.save(asked.out / "reader.safetensors", asked.model)
    collection = asked.out / "collection.jsonl"
    collection.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    data = ChunkData(lm, index, kept, neighbours, is_own=False)
    found, shares = losses_of(reader, data), goes_on(data, neighbours)
    told = {
        "losses": losses,
        "held_out": found,
        "goes_on": shares,
        "seconds": time.perf_counter() - began,
        "texts": len(texts),
    }
    (asked.out / "losses.json").write_text(json.dumps(told), encoding="utf-8")
    print("| | held-out nats per token | a neighbour goes on with the next token, % |\n|---|--:|--:|")
    for name, value in found.items():
        print(
            f"| {name} | {value:.3f} | {100 * shares[name]:.1f} |" if name in shares else f"| {name} | {value:.3f} | |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
