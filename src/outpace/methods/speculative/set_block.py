"""A causal model that was taught to fill masks writes several of the next tokens per forward, in any order in a block.

Paper: Gat et al. (2025), arXiv 2509.04185, Set Block Decoding (choice=entropy); Liu et al. (2025), arXiv 2509.24007,
    SDLM (choice=prefix).
Guarantee: approximate; exact with block=1, which is plain decoding.
Cost: one forward per step, over the tokens written since the last one and a block of `block` entries behind them.
Differences: the first place of a block is said by the text's own last output, so that a block whose other places never
    come near enough is written as plain decoding would; a mask stands one position before the token it is for, which is
    where a causal model says that token. The text's cache entries are those of the causal model, never of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.setting import setting
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["OpenBlocks", "SetBlock"]


@dataclass
class OpenBlocks:
    """The block of each row that is being written.

    Attributes:
        places: per row, the tokens decided behind its text, -1 = open; empty = no block is begun.
        mask: the mask token.
        limit: positions of the model's context.
    """

    places: list[list[int]] = field(default_factory=list)
    mask: int = 0
    limit: int = 0


@dataclass(frozen=True)
class SetBlock(Method):
    """Writes sets of a block's tokens per forward.

    Attributes:
        block: places of a block.
        choice: "entropy" (any places, while their summed entropy but for the largest is at most `gamma`; a block
            becomes text when all of it is decided) or "prefix" (the first place, and those behind it as long as each
            is at least `threshold` likely).
        gamma: entropy in nats that tokens written together may have.
        threshold: least probability of a further token of the prefix.
    """

    block: int = setting(8, least=1)
    choice: str = setting("prefix", among=("entropy", "prefix"))
    gamma: float = setting(0.1, least=0)
    threshold: float = setting(0.9, above=0, most=1)

    name: ClassVar[str] = "set-block"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A causal model taught to fill masks writes several of the next tokens in one forward."
    paper: ClassVar[Paper] = Paper(
        "Set Block Decoding is a Language Model Inference Accelerator",
        "Gat et al.",
        2025,
        "2509.04185",
        145,
        "Masks may stand at the first place of a block, which the text's own output says here.",
        "outpace train stories-sets",
    )
    papers: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "Sequential Diffusion Language Models",
            "Liu et al.",
            2025,
            "2509.24007",
            157,
            "Its checkpoints, which were not tried, and its self-speculative form.",
            "outpace train stories-sets",
        ),
    )

    @property
    def needs(self) -> Needs:
        """A causal target that scores blocks of its own order."""
        return Needs(has_tree=True, has_rollback=True, width=self.block)

    @property
    def tail(self) -> int:
        """A block that became text is forwarded beside the next one."""
        return self.block

    @property
    def guarantee(self) -> Guarantee:
        """Tokens written together ignore each other."""
        return Guarantee.EXACT if self.block == 1 else Guarantee.APPROXIMATE

    def start(self, context: Context) -> OpenBlocks:
        """Return rows without blocks.

        Raises:
            ConfigError: the model has no mask, or settings read the text so far.
        """
        target, mask = context.target, context.target.mask_token
        if mask is None and self.block > 1:
            reason = "The model names no mask token: its config.json has no pard_token."
            raise ConfigError(reason, "Train one (outpace train stories-sets), or use block=1.")
        limit = target.capabilities.max_positions
        if self.block > 1 and context.sampler.settings.is_stateful:
            reason = (
                "set-block writes out of order: no penalty, bad word, min_tokens or constraint over prefixes holds."
            )
            raise ConfigError(reason, "Leave them out, or use block=1.")
        return OpenBlocks([[] for _ in context.texts], -1 if mask is None else int(mask), limit)

    def propose(self, view: View, state: OpenBlocks) -> Proposal:
        """Lay the block out behind the text: decided tokens, and masks one position before their places."""
        rows: list[list[int]] = []
        for index, (room, length) in enumerate(zip(view.room, view.lengths, strict=True)):
            count = min(self.block, room - 1, state.limit - length)
            rows.append((state.places[index] or [-1] * count) if self.block > 1 and count > 0 else [])
        width = max(map(len, rows))
        if not width:
            return nothing(view)
        table = torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int64)
        first = torch.tensor(view.lengths).unsqueeze(1)
        position = first + torch.arange(width) - (table < 0).long()
        sight = torch.ones(len(rows), width, width, dtype=torch.bool)
        for index, row in enumerate(rows):
            sight[index, :, len(row) :] = False
        tokens = table.masked_fill(table < 0, state.mask).to(view.device)
        return Proposal(
            tokens,
            [len(row) for row in rows],
            origin=self.name,
            position=position.to(view.device),
            visible=sight.to(view.device),
            drafts=[0] * len(rows),
        )

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: OpenBlocks) -> Decision:
        """Decide a set of places per row; what is decided from the front of a whole block, or prefix, is emitted."""
        logits = scores.logits
        if state.mask >= 0 and self.block > 1:
            logits = logits.index_fill(-1, torch.tensor([state.mask], device=logits.device), float("-inf"))
        history = view.sampler.history(view.texts, view.prompts, logits.shape[-1])  # None but with a block of 1
        processed = view.sampler.process(logits, history)
        # Law 0 is the text's own, law i the one at entry i - 1; the mask of place 0 says what the text says better.
        laws = torch.cat([processed[:, :1], processed[:, 2:]], 1)
        places = torch.tensor(view.lengths, device=logits.device).unsqueeze(1) + torch.arange(laws.shape[1]).to(
            logits.device
        )
        drawn = view.sampler.pick(laws, places).tolist()
        blocks, texts = [], []
        for row, length in enumerate(proposal.length):
            block = (state.places[row] or [-1] * max(1, length))[: max(1, length)]
            text, rest = self._decide(block, drawn[row], laws[row])
            texts.append(text)
            blocks.append(rest)
        width = max(1, *map(len, texts))
        table = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=logits.device)
        path = torch.full_like(table, -1)
        return Decision(table, torch.tensor([len(text) for text in texts]), path, carry=blocks)

    def _decide(self, block: list[int], drawn: list[int], laws: Tensor) -> tuple[list[int], list[int]]:
        """Return what becomes text, and the block that is left open.

        Args:
            block: tokens decided, -1 = open.
            drawn: tokens of the open places.
            laws: [block, V] processed logits.
        """
        logs = laws[: len(block)].double().log_softmax(-1)
        if self.choice == "prefix":
            chance = logs.amax(-1).exp().tolist()
            count = next((at for at in range(1, len(block)) if chance[at] < self.threshold), len(block))
            return drawn[:count], []
        entropy = (-(logs.exp() * logs.clamp(min=-1e9)).sum(-1)).tolist()
        chosen = bounded(entropy, [at for at, token in enumerate(block) if token < 0], self.gamma)
        after = [drawn[at] if at in chosen else token for at, token in enumerate(block)]
        return (after, []) if min(after) >= 0 else ([], after)

    def observe(self, outcome: Outcome, view: View, state: OpenBlocks) -> OpenBlocks:
        """Take the blocks as they are after the step."""
        del view
        if outcome.decision is None:
            return state
        return OpenBlocks(list(outcome.decision.carry), state.mask, state.limit)


def bounded(entropy: list[float], places: list[int], gamma: float) -> set[int]:
    """Return the most places whose entropies, but for the largest, sum to at most `gamma`; one at least.

    Source: Ben-Hamu et al. (2025), arXiv 2505.24857, which Set Block Decoding takes it from.
    """
    ranked = sorted(places, key=lambda at: entropy[at])
    count, below = 1, 0.0
    while count < len(ranked) and (below := below + entropy[ranked[count - 1]]) <= gamma:
        count += 1
    return set(ranked[:count])
