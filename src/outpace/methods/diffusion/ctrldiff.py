"""Let a small policy pick the size of each block, and a classifier pull the text towards an attribute.

Paper: Huang, Tang (2025), arXiv 2505.14455 (CtrlDiff): block sizes by a policy trained with reinforcement learning, and
    classifier guidance of discrete diffusion. Every block takes `steps` forwards, so a long block is fast and a short
    one careful; the policy reads the model's last state where the block begins, and how wide the laws ahead are.
Guarantee: approximate. A policy that always says B gives the text of block=B, and weight=0 that without a classifier,
    token for token; with as many steps as places it is masked-diffusion.
Cost: `steps` forwards per block; the policy one small perceptron per block, the classifier O(V) per row and step.
Differences: built from the abstract. The reward is ours: likelihood under a causal judge less a price per forward
    (`outpace.train.block_policy`). Guidance multiplies each open place's law by p(attribute | decided tokens, this one)
    to the power `weight`, exactly, for the classifier is logistic; the paper approximates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from outpace.canvas import ORDERS, Advance, Copy, Parts, Ranked, Reading, Rule, advance
from outpace.canvas.block_policy import BlockPolicy, SizedBlocks, known_at, read_policy
from outpace.canvas.classifier import read_classifier
from outpace.canvas.row import CanvasRow, Floats
from outpace.canvas.rules.paced import Paced
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasBatch, CanvasMethod, ReadCopy
from outpace.setting import setting
from outpace.types import Capabilities, Needs, Outputs, Scores, View

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["CtrlDiff"]


@dataclass
class _Seen:
    """What this forward says of a row, and the model's last states of its asked places [A, D]; None = not wanted."""

    reader: ReadCopy
    states: Any

    def __call__(self, copy: Copy) -> Reading:
        return self.reader(copy)


@dataclass(frozen=True)
class CtrlDiff(CanvasMethod):
    """Blocks of chosen sizes, and classifier guidance.

    Attributes:
        steps: forwards for each block.
        order: what is written first, as in `masked-diffusion`.
        size_policy: a file of `python -m outpace.train.block_policy`; "none" = all blocks are as long as `block`.
        classifier: a file of `python -m outpace.train.classifier`; "none" = no attribute.
        weight: power of the classifier's probability; 0 = no attribute.

    Raises:
        ConfigError: a setting outside its range, or both block and size_policy.
    """

    steps: int = setting(4, least=1)
    order: str = setting("confidence", among=ORDERS)
    size_policy: str = "none"
    classifier: str = "none"
    weight: float = setting(1.0, least=0, is_finite=True)

    name: ClassVar[str] = "ctrldiff"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Picks block sizes by a trained policy, and follows a classifier; needs a masked model."
    paper: ClassVar[Paper] = Paper(
        "CtrlDiff: Boosting Large Diffusion Language Models with Dynamic Block Prediction and Controllable Generation",
        "Huang, Tang",
        2025,
        "2505.14455",
        312,
        "Its reward and its approximation of guidance, of which only the abstract was read.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block and self.size_policy != "none":
            raise ConfigError(f"block is {self.block}, and the policy picks the sizes of blocks.", "Give one of both.")

    @property
    def rule(self) -> Rule:
        """The best-ranked places, as many as finish the block in time."""
        return Paced(Ranked(self.order), self.steps)

    @property
    def needs(self) -> Needs:
        """A masked model; its last states where a policy reads them."""
        return replace(super().needs, outputs=Outputs(has_last=self.size_policy != "none"))

    def learned(self) -> BlockPolicy | None:
        """Return the policy; None = blocks of one size."""
        return None if self.size_policy == "none" else read_policy(self.size_policy)

    def pick(self, policy: BlockPolicy, known: Floats, row: CanvasRow) -> int:
        """Return which of the policy's sizes the block takes that begins at `row.base`: the likeliest.

        Args:
            policy: says how good each size is.
            known: [D + K] what it reads there.
            row: whose block begins.
        """
        del row
        return int(policy.logits(known).argmax())

    def parts(self, offered: Capabilities, tokenizer: Tokenizer | None) -> Parts:
        """Return the parts; laws are asked as far as any block may reach.

        Raises:
            ConfigError: as `CanvasMethod.parts`; a file is none of its kind.
            CapabilityError: a file was made with a model of another vocabulary.
        """
        parts, policy, size = super().parts(offered, tokenizer), self.learned(), offered.vocab_size
        if policy is not None:
            _check(self.size_policy, policy.vocab_size, size)
            parts = replace(parts, schedule=SizedBlocks(policy.sizes[-1], policy.sizes[-1]))
        if self.classifier != "none":
            _check(self.classifier, len(read_classifier(self.classifier).weights), size)
        return parts

    def readers(self, scores: Scores, view: View, state: CanvasBatch) -> list[ReadCopy]:
        """Guide the laws, and return, per row, what reads them and the states that the policy reads."""
        if self.classifier != "none" and self.weight:
            known = read_classifier(self.classifier)
            for index, row in enumerate(state.canvases):
                text = row.tokens[row.prompt : row.live()]
                pull = self.weight * known.log_chances(text[text != state.parts.canvas.mask_id])
                scores.logits[index] += torch.from_numpy(pull).to(scores.logits)
        last = [None] * len(state.canvases) if scores.last is None else list(scores.last)
        return [_Seen(*pair) for pair in zip(super().readers(scores, view, state), last, strict=True)]

    def take(self, copies: Sequence[Copy], reader: ReadCopy, parts: Parts) -> Advance | None:
        """Pick the size of a block that begins, then take a step of it."""
        row, policy, reading = copies[0].row, self.learned(), reader(copies[0])
        if reading.is_broken:
            return None
        if policy is not None and row.end == row.base:
            assert isinstance(reader, _Seen)
            state: Floats = reader.states[copies[0].asked].double().cpu().numpy()
            wanted = policy.hidden.shape[1] - 1 - len(policy.sizes)
            if len(state) != wanted:
                reason = f"The block policy {self.size_policy} reads states of {wanted} numbers, the model's"
                raise CapabilityError(f"{reason} have {len(state)}.", "Train one on this model.")
            known = known_at(np.nan_to_num(state), reading, row.base, policy.sizes)
            size = policy.sizes[self.pick(policy, known, row)]
            parts = replace(parts, schedule=SizedBlocks(size, policy.sizes[-1]))
        return advance(row, reading, copies[0].window, parts)


def _check(path: str, ours: int, theirs: int) -> None:
    if ours != theirs:
        reason = f"The file {path} was made with {ours} tokens, the model has {theirs}."
        raise CapabilityError(reason, "Train one for this model.")
