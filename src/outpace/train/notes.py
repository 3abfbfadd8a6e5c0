"""Training the notes of parallel streams (`outpace.models.notes`) on a frozen trunk; what they know of unseen texts.

Two stretches of a story stand behind the same beginning, as two streams that do not see each other. Each learns to tell
its own tokens by the notes of the other's earlier blocks; the verification head learns to tell those notes from the
notes of another story.

    python -m outpace.train.notes --model stories --data data --out runs/stories-notes
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.models.notes import NoteNet, save_notes
from outpace.train.data import find_data
from outpace.train.drafter.states import forward_states
from outpace.train.sources import held_out_stories, tiny_stories
from outpace.types import Adapter, Outputs

__all__ = ["figures", "fit", "main", "streams_of"]

_BEGUN, _STRIDE, _BLOCKS = 24, 16, 3


def streams_of(target: Adapter, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the trunk's states [N, 2, B, S, H] before each token of two streams of every text, and the tokens.

    Args:
        target: the trunk.
        texts: of `_BEGUN` + 2 * `_BLOCKS` * `_STRIDE` tokens.
    """
    size, rows = _BLOCKS * _STRIDE, list[list[int]]()
    for text in texts:
        rows += [[*text[:_BEGUN], *text[_BEGUN + at * size : _BEGUN + (at + 1) * size]] for at in range(2)]
    found = [
        forward_states(target, rows[at : at + 32], Outputs(has_last=True, has_logits=False)).float()
        for at in range(0, len(rows), 32)
    ]
    states, tokens = torch.cat(found), torch.tensor(rows)
    shape = (len(texts), 2, _BLOCKS, _STRIDE)
    # What says a token is the state before it; what a block is noted by are the states of its own tokens.
    pairs = torch.stack([states[:, _BEGUN - 1 : -1], states[:, _BEGUN:]])
    return pairs.view(2, *shape, -1), tokens[:, _BEGUN:].view(shape)


def _changed(net: NoteNet, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the changed states [N, 2, B - 1, S, H] of all blocks but the first, and all notes [N, 2, B, W]."""
    before, own = states
    notes = net.note(own)
    changed = []
    for block in range(1, _BLOCKS):
        others = notes.flip(1)[:, :, :block].flatten(0, 1)
        rows = before[:, :, block].flatten(0, 1)
        is_there = torch.ones(others.shape[:2], dtype=torch.bool)
        changed.append((rows + net.change(rows, others, is_there)).view_as(before[:, :, block]))
    return torch.stack(changed, 2), notes


def _odds(net: NoteNet, notes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-odds [N, 2] of the last block beside the other stream's notes, and beside another text's."""
    own, others = notes[:, :, -1], notes.flip(1)
    return net.agreement(own, others), net.agreement(own, others.roll(1, 0))


def fit(target: Adapter, states: Tensor, tokens: Tensor, steps: int, rows: int = 12, seed: int = 0) -> NoteNet:
    """Return an adapter that was fitted to streams.

    Args:
        target: the trunk.
        states, tokens: of `streams_of`.
        steps, rows: of Adam, and texts in each.
        seed: of weights and draws.
    """
    torch.manual_seed(seed)
    width = states.shape[-1]
    net, matrix = NoteNet(width), target.head(torch.eye(width, dtype=target.dtype)).float()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        chosen = torch.randperm(states.shape[1])[:rows]
        changed, notes = _changed(net, states[:, chosen])
        told = F.cross_entropy((changed @ matrix).flatten(0, -2), tokens[chosen][:, :, 1:].flatten())
        real, other = _odds(net, notes)
        loss = told + F.softplus(-real).mean() / 2 + F.softplus(other).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def figures(target: Adapter, net: NoteNet, states: Tensor, tokens: Tensor) -> dict[str, float]:
    """Return nats per token without notes, with them and with another text's, and how well blocks are told."""
    matrix = target.head(torch.eye(states.shape[-1], dtype=target.dtype)).float()
    wanted = tokens[:, :, 1:].flatten()

    def nats(rows: Tensor) -> float:
        return float(F.cross_entropy((rows @ matrix).flatten(0, -2), wanted))

    changed, notes = _changed(net, states)
    strange, _ = _changed(net, torch.stack([states[0], states[1].roll(1, 0)]))
    real, other = _odds(net, notes)
    said, right = float((real > 0).sum() + (other > 0).sum()), float((real > 0).sum())
    return {
        "alone": nats(states[0][:, :, 1:]),
        "noted": nats(changed),
        "strange": nats(strange),
        "precision": right / max(1.0, said),
        "recall": right / real.numel(),
    }


def _texts(lm: LanguageModel, stories: list[str], count: int) -> list[list[int]]:
    size = _BEGUN + 2 * _BLOCKS * _STRIDE
    found = list[list[int]]()
    for story in stories:
        if len(ids := lm.encode(story)) >= size and len(found) < count:
            found.append(ids[:size])
    if len(found) < 2:
        raise ConfigError(f"Fewer than two texts have {size} tokens.", "Give longer ones.")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Fit, save, and tell what the notes know of held-out stories."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.notes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="stories", help="the frozen trunk")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--texts", type=int, default=400, help="stories to learn from")
    parser.add_argument("--held-out", type=int, default=100, help="stories to judge by")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args(arguments)
    lm, data = load(given.model), find_data(given.data)
    [source] = (tiny_stories(),)
    source.paths(source.files, data)
    learnt = streams_of(lm.target, _texts(lm, list(source.read(data)), given.texts))
    net = fit(lm.target, *learnt, given.steps)
    save_notes(net, given.out)
    found = figures(lm.target, net, *streams_of(lm.target, _texts(lm, held_out_stories(data), given.held_out)))
    told = {"no notes": "alone", "notes of the other stream": "noted", "notes of another story": "strange"}
    print("| beside a stream | nats per token |", "|---|--:|", sep="\n")
    print(*(f"| {what} | {found[name]:.3f} |" for what, name in told.items()), sep="\n")
    print(f"Blocks told from another story's: precision {found['precision']:.1%}, recall {found['recall']:.1%}.")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
