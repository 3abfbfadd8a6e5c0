"""Cut the text into blocks where sentences end, as far as the model already knows it.

Paper: Lu et al. (2025), arXiv 2509.26432 (AdaBlock-dLLM), Algorithm 1: when a block begins, the surest delimiter among
    the tokens predicted for the next quarter of the generation ends it, if it is sure enough; else the block has its
    default length. Within a block, tokens above a confidence threshold are written together (Fast-dLLM).
Guarantee: approximate. With delimiter_threshold above 1 the blocks are fixed ones, exactly.
Cost: that of threshold decoding; the first forward of each block also reads the laws of the window.
Differences: delimiters are found in the tokenizer (any token of delimiters without letters or digits, so also `."` or
    a double line feed), not given as ids of one model; any number of rows; under block attention a block never
    crosses the border of the model's own. A model without a tokenizer, or without such tokens, has fixed blocks, and
    traces say so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from outpace.canvas import FixedBlocks, Parts, Ranked
from outpace.canvas.adaptive_blocks import AdaptiveBlocks
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import BLOCK, CanvasBatch, CanvasMethod
from outpace.methods.setting import setting
from outpace.types import Capabilities, Proposal, View

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["AdaBlock", "delimiter_ids"]


@dataclass(frozen=True)
class AdaBlock(CanvasMethod):
    """Threshold decoding in blocks that end at delimiters; `block` is the length of the others.

    Attributes:
        delimiters: characters that end a unit of the text; the two characters backslash and n stand for a line feed.
        delimiter_threshold: least confidence of a delimiter that ends a block; above 1 = fixed blocks.
        window: the share of the generation's length that is searched for one.
        threshold: confidence from which places are written together; 1 = one token per step.

    Raises:
        ConfigError: no delimiters, or a number out of its range.
    """

    delimiters: str = ".!?\n"
    delimiter_threshold: float = setting(0.3, above=0, note="above 1 = fixed blocks")
    window: float = setting(0.25, above=0, most=1)
    threshold: float = setting(0.9, above=0, most=1)

    name: ClassVar[str] = "adablock"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Ends blocks where sentences end, as far as the model knows; needs a masked model."
    paper: ClassVar[Paper] = Paper(
        "AdaBlock-dLLM: Semantic-Aware Diffusion LLM Inference via Adaptive Block Size",
        "Lu et al.",
        2025,
        "2509.26432",
        265,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.delimiters:
            raise ConfigError("There are no delimiters.", "Name characters, such as delimiters='.!?'.")

    @property
    def rule(self) -> Ranked:
        """The surest place, and all above the threshold."""
        return Ranked(threshold=self.threshold if self.threshold < 1 else 2.0)

    def parts(self, offered: Capabilities, tokenizer: Tokenizer | None) -> Parts:
        """Return the parts, with adaptive blocks, or fixed ones where no delimiter can end a block."""
        parts = super().parts(offered, tokenizer)
        ids = () if tokenizer is None else delimiter_ids(tokenizer, self.delimiters)
        if not ids or self.delimiter_threshold > 1:
            return parts
        size = self.block or parts.canvas.block_size or BLOCK
        return replace(parts, schedule=AdaptiveBlocks(size, ids, self.delimiter_threshold, self.window))

    def dress(self, proposal: Proposal, view: View, state: CanvasBatch) -> Proposal:
        """Note for traces where each row's block in work begins and ends, or that no delimiter is known."""
        del view
        if isinstance(state.parts.schedule, FixedBlocks):
            return replace(proposal, note="fixed blocks")
        spans = [f"{row.base}-{row.end}" if row.end > row.base else f"{row.base}-?" for row in state.canvases]
        return replace(proposal, note="blocks " + ", ".join(spans))


def delimiter_ids(tokenizer: Tokenizer, delimiters: str) -> tuple[int, ...]:
    """Return the ids of the tokens that hold a delimiter and neither letters nor digits.

    Args:
        tokenizer: the model's.
        delimiters: characters; backslash and n stand for a line feed.
    """
    wanted = set(delimiters.replace("\\n", "\n"))
    special = set(tokenizer.special_ids.values())
    texts = ((index, tokenizer.decode([index])) for index in range(tokenizer.vocab_size) if index not in special)
    return tuple(index for index, text in texts if wanted & set(text) and not any(c.isalnum() for c in text))
