"""Insertion networks: a text grows from given tokens, one token at most in each slot a round, or one token at a time.

What such a network is trained on is its `scheme` (see `stages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import stages
from .network import UNSAID, Pass
from .sketch import SPECIAL, Sketch
from .sketched import NEVER, Sketched, SketchedConfig, certain_laws

__all__ = ["Insertion", "InsertionConfig", "InsertionLm", "InsertionLmConfig"]

_WHOLE = 0.2  # share of the states that are whole texts, besides those drawn so: else a long text seldom shows its end


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertionConfig(SketchedConfig):
    """Sizes of an insertion network.

    Attributes:
        scheme: which states are trained: "progressive" (stages by importance alone: POINTER), "entities" (stages that
            grow from what is given: ENCONTER), "spread" (given tokens and some others, the middle of each slot first:
            Insertion Transformer) or "uniform" (given tokens and some others, any missing token next).
    """

    scheme: Literal["progressive", "entities", "spread", "uniform"] = "entities"


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertionLmConfig(InsertionConfig):
    """Sizes of an insertion language model."""

    scheme: Literal["progressive", "entities", "spread", "uniform"] = "uniform"


class Insertion(Sketched):
    """A network that says of every slot which token comes there next, or nothing (symbol V)."""

    Config = InsertionConfig
    kind: ClassVar[str] = "insertion"
    extra_symbols: ClassVar[int] = 1

    def __init__(self, config: InsertionConfig) -> None:
        super().__init__(config)
        self.join = nn.Linear(2 * config.width, config.width)

    def finish(self, run: Pass) -> list[Tensor]:
        """Return log-probabilities [B, L, V + 1] of slots, closed ones surely empty, and what `resume` needs."""
        found = self.written(F.relu(self.join(self.slots(self.decode(run)))))
        if not self.training:  # no label is on a closed slot
            nothing = torch.full_like(found[:1, :1], NEVER)
            nothing[..., -1] = 0.0
            found = self.bordered(torch.where(run.extra["is_open"][:, :, None], found, nothing), run.extra["is_given"])
        return [found, *self.kept(run)]

    def trained(self, run: Pass) -> list[Sketch]:
        """Draw a state of each target, as the scheme says, and keep its labels."""
        sketches, labels = [], list[tuple[int, int, int, float]]()
        for row, (text, given, places) in enumerate(self.told(run)):
            kept, wanted = self.drawn(text, places)
            at = dict(zip(places, given.is_glued, strict=True))
            # A place of a phrase that a stage has torn apart is glued no more.
            glued = [at.get(place, False) and place - 1 in kept for place in kept]
            sketch = Sketch([text[place] for place in kept], [place in at for place in kept], glued)
            is_open = sketch.is_open
            labels += [(row, *label) for label in wanted if is_open[label[0]]]
            sketches.append(sketch)
        run.extra["labels"] = labels
        return sketches

    def drawn(self, text: list[int], places: list[int]) -> tuple[list[int], list[stages.Label]]:
        """Return the places that a state of a target keeps, and what it should add."""
        nothing, scheme = self.config.vocab_size, self.config.scheme
        fixed = set(places)
        if scheme in ("progressive", "entities"):
            weights = self.importance[text].tolist()
            if scheme == "progressive":
                found = stages.stages(weights, [False] * len(text), max(len(places), 1))
            else:
                found = stages.grown(weights, places)
            stage = int(torch.randint(len(found), ()))
            return found[stage], stages.insertions(text, found[stage], found[max(stage - 1, 0)], nothing)
        free = [at for at in range(len(text)) if at not in fixed]
        num = int(torch.randint(len(free) + 1, ()))
        if scheme == "uniform" and float(torch.rand(())) < _WHOLE:
            num = len(free)
        kept = sorted([*places, *(free[at] for at in torch.randperm(len(free))[:num].tolist())])
        if scheme == "spread":
            return kept, stages.spread(text, kept, nothing)
        missing = [(slot, at) for slot, span in enumerate(stages.spans(kept, len(text))) for at in span]
        share = 1 / max(len(missing), 1)
        return kept, [(slot, text[at], share) for slot, at in missing] or [(0, nothing, 1.0)]

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the loss [B] of what the state should add, and of the plan."""
        found = outputs[0]
        rows, slots, tokens, weights = zip(*run.extra["labels"], strict=True)
        index = [torch.tensor(part, device=found.device) for part in (rows, slots, tokens)]
        each = -found[tuple(index)] * torch.tensor(weights, device=found.device, dtype=found.dtype)
        return found.new_zeros(len(found)).index_add(0, index[0], each) + self.plan_loss(run)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the symbol of most weight that each slot should say."""
        found, best = torch.full_like(run.extra["tokens"], UNSAID), dict[tuple[int, int], float]()
        for row, slot, token, weight in run.extra["labels"]:
            if weight > best.get((row, slot), 0.0):
                best[row, slot], found[row, slot] = weight, token
        return found

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the texts of one round: what is given, and what the slots say first."""
        _, sketches = self.resume(outputs, is_place)
        found, laws = outputs[0], []
        for row, sketch in enumerate(sketches):
            law = certain_laws(sketch.tokens, self.config.vocab_size, found)
            said = found[row, : len(sketch.tokens) + 1]
            parts = [law[:0]]
            for slot, nothing in enumerate(said[:, -1].exp().tolist()):
                parts += [said[slot, None, :-1]] if nothing < 0.5 else []
                parts += [law[slot, None]] if slot < len(law) else []
            laws.append(torch.cat(parts))
        return laws


class InsertionLm(Insertion):
    """A network that says which token comes next and in which slot, jointly, and whether the text is done.

    Paper: Patel et al. (2025), arXiv 2505.05755. The text is done by a law of its own, read from the start's state;
    what is inserted follows one law over all pairs of slot and token.
    """

    Config = InsertionLmConfig
    kind: ClassVar[str] = "insertion-lm"

    def __init__(self, config: InsertionLmConfig) -> None:
        super().__init__(config)
        self.done = nn.Linear(config.width, 1)
        nn.init.constant_(self.done.bias, -2.0)  # at first it goes on

    def finish(self, run: Pass) -> list[Tensor]:
        """Return log-probabilities [B, L, V + 1] that sum to 1 over a row; symbol V in slot 0 means done."""
        hidden = self.decode(run)
        logits = F.relu(self.join(self.slots(hidden))) @ self.embed_tokens.weight[:-1].T
        logits = logits if logits.dtype == torch.float64 else logits.float()
        special = torch.arange(logits.shape[-1], device=logits.device) < SPECIAL
        if not self.training:  # any missing token is a label, also one that goes on with a word that is missing too
            logits = self.bordered(logits, run.extra["is_given"])
        logits = logits.masked_fill(special | ~run.extra["is_open"][:, :, None], NEVER)
        done = self.done(hidden[:, 0]).to(logits.dtype)
        found = logits.flatten(1).log_softmax(-1).view_as(logits) + F.logsigmoid(-done)[:, :, None]
        ends = torch.full_like(found[:, :, :1], NEVER)
        ends[:, 0] = F.logsigmoid(done)
        return [torch.cat([found, ends], -1), *self.kept(run)]

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the given tokens as they stand: one pass says one token, so a text takes the rule `insertion-lm`."""
        _, sketches = self.resume(outputs, is_place)
        return [certain_laws(sketch.tokens, self.config.vocab_size, outputs[0]) for sketch in sketches]
