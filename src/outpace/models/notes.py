"""Streams that tell each other: notes of what each has written change what the others' states say, on a frozen trunk.

Paper: Robbins (2025), Parallel Decoder Transformer: Model-Internal Parallel Decoding with Speculative Invariance via
Note Conditioning, arXiv 2512.10054: streams of one text decode side by side; each writes a note of every block to a
shared bus, adapters condition each stream on the others' notes, and a verification head says which blocks to take back.

Guarantee: an adapter of zeros is the trunk, bit for bit: what notes change is added to the trunk's own logits.
Cost: a thin attention over notes and one more product with the head, per place.
Differences: the adapter stands behind the last layer, where the paper's stand in every one; blocks have a fixed size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from outpace.cache import Cache
from outpace.errors import CapabilityError, ModelError
from outpace.papers import Paper
from outpace.types import NO_OUTPUTS, Adapter, Counter, Outputs, Scores

__all__ = ["PAPERS", "NoteNet", "Noted", "read_notes", "save_notes"]

PAPERS = (
    Paper(
        "Parallel Decoder Transformer: Model-Internal Parallel Decoding with Speculative Invariance via Note "
        "Conditioning",
        "Robbins",
        2025,
        "2512.10054",
        288,
        "Adapters in every layer, plans, and a trunk of 20 billion parameters.",
        "python -m outpace.train.notes --out DIR",
    ),
)
_FILE = "notes.safetensors"


class NoteNet(nn.Module):
    """What writes notes, reads them, and says whether a block agrees with them.

    Args:
        hidden: width of the trunk's last states.
        width: of a note.
    """

    def __init__(self, hidden: int, width: int = 48) -> None:
        super().__init__()
        self.write, self.ask = nn.Linear(hidden, width), nn.Linear(hidden, width)
        self.look, self.tell = nn.Linear(width, width), nn.Linear(width, hidden, bias=False)
        self.match, self.bias = nn.Linear(width, width, bias=False), nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.tell.weight)  # untrained, it is the trunk

    def note(self, states: Tensor) -> Tensor:
        """Return the note [..., width] of a block's last states [..., T, hidden]."""
        return torch.tanh(self.write(states.mean(-2)))

    def change(self, states: Tensor, notes: Tensor, is_there: Tensor) -> Tensor:
        """Return what notes add to states [B, T, hidden]; without any, zeros.

        Args:
            states: last states of a stream.
            notes: [B, N, width], the others'.
            is_there: [B, N] bool.
        """
        found = self.ask(states) @ self.look(notes).transpose(-1, -2) / notes.shape[-1] ** 0.5
        found = found.masked_fill(~is_there.unsqueeze(1), float("-inf"))
        nothing = found.new_zeros(*found.shape[:-1], 1)  # a stream may also look at none
        weights = torch.cat([found, nothing], -1).softmax(-1)[..., :-1]
        told: Tensor = self.tell(weights @ notes)
        return told

    def agreement(self, note: Tensor, notes: Tensor) -> Tensor:
        """Return the log-odds [...] that a block's note [..., width] goes with others' notes [..., N, width]."""
        odds: Tensor = (self.match(note) * notes.mean(-2)).sum(-1) + self.bias
        return odds


class Noted(Adapter):
    """A trunk whose rows have notes of their siblings beside them.

    Args:
        target: a causal model that gives hidden states.
        net: the adapter.
        notes: [R, N, width] of the R rows that will join, in their order.
        is_there: [R, N] bool.

    Raises:
        CapabilityError: the target gives no hidden states.
        ModelError: the adapter is for another width.
    """

    def __init__(self, target: Adapter, net: NoteNet, notes: Tensor, is_there: Tensor) -> None:
        self.target, self.net = target, net
        self.capabilities = replace(target.capabilities, has_skip=False)
        if target.capabilities.attention != "causal" or target.capabilities.is_encoder_decoder:
            raise CapabilityError("Streams are written by causal decoders.", "Use one.")
        for name in ("device", "dtype", "notes", "path", "is_invariant", "is_quantised", "tokenizer", "shape"):
            setattr(self, name, getattr(target, name))
        target.check(Outputs(has_last=True))
        width = target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)).shape[-1]
        if net.write.in_features != width:
            raise ModelError(
                f"The notes are for states of {net.write.in_features} numbers; the model has {width}.",
                "Train them on this model: outpace.train.notes.",
            )
        self._bus = torch.cat([notes, is_there.unsqueeze(-1).to(notes.dtype)], -1)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache of the target, each of whose rows has notes beside it."""
        cache = self.target.new_cache(rows, capacity, counter)
        cache.extra = [self._bus.new_zeros(rows, *self._bus.shape[1:])]
        return cache

    def note_prompts(self, cache: Cache, prompts: Sequence[int]) -> None:
        """Give rows that join their notes."""
        cache.extra = [self._bus[: len(prompts)].clone()]

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the target's embeddings."""
        return self.target.embed(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        """Return the target's own logits."""
        return self.target.head(hidden)

    @torch.no_grad()
    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run one forward of the trunk, and add what the notes change."""
        self.check(outputs, skip)
        wanted = outputs | Outputs(has_last=True, has_logits=outputs.has_logits)
        scores = self.target.score(tokens, position, visible, cache, ask, wanted, inputs)
        if not outputs.has_logits or scores.last is None:
            return scores
        bus = cache.extra[-1]
        change = self.net.change(scores.last.to(bus.dtype), bus[..., :-1], bus[..., -1] > 0)
        more = self.target.head(change.to(self.dtype)).to(scores.logits.dtype)
        return replace(scores, logits=scores.logits + more)


def save_notes(net: NoteNet, directory: Path) -> None:
    """Write an adapter."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight.detach().float().contiguous() for name, weight in net.state_dict().items()}
    save_file(tensors, directory / _FILE)


def read_notes(directory: str | Path) -> NoteNet:
    """Return the adapter that `outpace.train.notes` wrote.

    Raises:
        ModelError: there is none.
    """
    try:
        tensors = load_file(Path(directory) / _FILE)
        net = NoteNet(tensors["write.weight"].shape[1], tensors["write.weight"].shape[0])
        net.load_state_dict(tensors)
    except (OSError, SafetensorError, LookupError, RuntimeError) as error:
        raise ModelError(
            f"{directory} holds no notes.", "Name a directory of python -m outpace.train.notes."
        ) from error
    return net.eval()
