"""A conditional masked language model: a text of predicted length, all its places read at once, some of them blank.

Paper: Ghazvininejad et al. (2019), arXiv 1904.09324. What a blank place reads is a mask, or a token by chance, as
Savinov et al. (2022), arXiv 2112.06749, start from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .lengths import Lengths
from .network import UNSAID, NarConfig, NarNet, Pass, uniform_copy

__all__ = ["Cmlm", "CmlmConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CmlmConfig(NarConfig):
    """Sizes of a masked network.

    Attributes:
        reach: texts are at most so many tokens longer or shorter than their sources.
        blank: what an unwritten place reads: "mask", or "noise", a token that depends on the place alone.
        has_copy: places also read the source's states, spread evenly over them.
        mask_token: stands for no token; never written.
    """

    reach: int = 32
    blank: str = "mask"
    has_copy: bool = True
    mask_token: int = 1


class Cmlm(NarNet):
    """A network that reads a text with blanks, and says a token at every place."""

    kind = "cmlm"
    Config = CmlmConfig

    def __init__(self, config: CmlmConfig) -> None:
        super().__init__(config)
        self.lengths = Lengths(config.width, config.reach, config.max_positions)
        self.unsaid = (config.mask_token, config.start_token, config.end_token)

    # What rules and objectives use.

    def blanks(self, lengths: Tensor) -> Tensor:
        """Return what unwritten texts of lengths [B] read, [B, L] int64."""
        shape = len(lengths), int(lengths.max())
        if self.config.blank == "mask":
            return lengths.new_full(shape, self.config.mask_token)
        return self.noise(torch.Generator().manual_seed(0), shape[1]).to(lengths.device).expand(shape)

    def noise(self, generator: torch.Generator | None, *shape: int) -> Tensor:
        """Return tokens by chance, none of them special."""
        tokens = torch.randint(self.config.vocab_size - len(self.unsaid), shape, generator=generator)
        for token in sorted(self.unsaid):
            tokens += tokens >= token
        return tokens

    def lay(self, run: Pass, lengths: Tensor) -> Pass:
        """Give texts of these lengths [B] to a pass, all blank, and return it."""
        run.is_place = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        said = (run.is_real.sum(1) - 1).clamp(min=1)  # no place has to do with the source's end
        is_said = torch.arange(run.is_real.shape[1], device=said.device) < said[:, None]
        copied = uniform_copy(run.states, is_said, lengths)[0] if self.config.has_copy else 0.0
        run.extra["copied"] = copied * self.config.width**-0.5  # no larger than tokens
        run.inputs = self.reading(run, self.blanks(lengths))
        return run

    def reading(self, run: Pass, tokens: Tensor) -> Tensor:
        """Return the inputs [B, L, W] of places that read tokens [B, L]."""
        inputs: Tensor = self.embed_tokens(tokens) + run.extra["copied"]
        return inputs

    def read(self, run: Pass, tokens: Tensor) -> Tensor:
        """Return the log-probabilities [B, L, V] of every place's token, where the places read tokens [B, L]."""
        run.inputs = self.reading(run, tokens)
        return self.head(self.decode(run))

    def resumed(self, outputs: Sequence[Tensor], count: int = 1) -> Pass:
        """Return a pass over texts of the `count` likeliest lengths of each row, a row's side by side, all blank.

        Args:
            outputs: of `finish`.
            count: lengths of each row.
        """
        _, law, states, is_real = outputs
        lengths = self.lengths.best(law, is_real, count)
        rows = torch.arange(len(law), device=law.device).repeat_interleave(lengths.shape[1])
        none = lengths.new_zeros(len(rows), 0)
        run = Pass(none, is_real[rows], states[rows], states[rows, :0], is_real[rows, :0], none, lengths.new_zeros(0))
        return self.lay(run, lengths.flatten())

    # What every kind gives.

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Lay out as many places as the target has tokens; without one, as many as the likeliest text has."""
        law = run.extra["length law"] = self.lengths(run.states, run.is_real)
        is_told = run.targets.shape[1] > 0
        lengths = run.lengths.clamp(min=1) if is_told else self.lengths.best(law, run.is_real)[:, 0]
        self.lay(run, lengths)
        return run.inputs, run.is_place

    def finish(self, run: Pass) -> list[Tensor]:
        """Return the log-probabilities, then the law of the length, the source's states, and which are real."""
        return [self.head(self.decode(run)), run.extra["length law"], run.states, run.is_real]

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Add up what the length and, each by itself, the tokens cost."""
        size = run.targets.shape[1]
        is_said = (torch.arange(size, device=run.targets.device) < run.lengths[:, None]) & run.asked[:, :size]
        said = outputs[0][:, :size].gather(2, run.targets[:, :, None])[:, :, 0]
        return self.lengths.nll(outputs[1], run) - torch.where(is_said, said, 0.0).sum(1)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the targets themselves."""
        size = outputs[0].shape[1]
        is_said = torch.arange(size, device=run.targets.device) < run.lengths[:, None]
        targets = F.pad(run.targets, (0, size - run.targets.shape[1]))
        return targets.masked_fill(~is_said, UNSAID)

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the laws of the places that the likeliest length has."""
        return [row[real] for row, real in zip(outputs[0], is_place, strict=True)]
