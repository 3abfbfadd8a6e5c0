"""What rules share that read a whole text with blanks, write it anew, and read it again.

A text is written in passes. Of each row several texts of different lengths may be written side by side; the one whose
tokens are the likeliest, on the mean, is kept. A template fixes the length, and the tokens outside its gaps.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.cmlm import Cmlm
from outpace.models.nar.model import NarModel, outputs_of
from outpace.models.nar.network import Pass
from outpace.models.one_pass import end_law
from outpace.setting import setting
from outpace.types import Context

__all__ = ["Draft", "Refinement", "lowest"]

_GAP = re.compile(r"\{(\d{1,4})\}")


@dataclass(slots=True)
class Draft:
    """Texts that are being written; R texts of L places.

    Attributes:
        run: the network's pass over them.
        tokens: [R, L], what stands at each place.
        is_free: [R, L] bool, places that the rule may write; the others are given, or padding.
        scores: [R, L], the log-probability of each written token.
        laws: [R, L, V], the law that each token was picked from.
        is_done: [R] bool, texts that a pass has left as they were.
    """

    run: Pass
    tokens: Tensor
    is_free: Tensor
    scores: Tensor = field(init=False)
    laws: Tensor = field(init=False)
    is_done: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Begin without scores, laws and finished texts."""
        self.scores = torch.zeros(self.tokens.shape, dtype=self.run.states.dtype, device=self.tokens.device)
        self.is_done = torch.zeros(len(self.tokens), dtype=torch.bool, device=self.tokens.device)

    def write(self, is_open: Tensor, log_probs: Tensor, is_first: bool) -> None:
        """Put the likeliest tokens into open places [R, L], by laws [R, L, V], and see which texts stay as they are."""
        is_open = is_open & ~self.is_done[:, None]
        best, said = log_probs.max(-1)
        said = torch.where(is_open, said, self.tokens)
        self.laws = log_probs if is_first else torch.where(is_open[:, :, None], log_probs, self.laws)
        self.scores = torch.where(is_open, best.to(self.scores.dtype), self.scores)
        self.is_done = self.is_done | ((said == self.tokens).all(1) & (not is_first))
        self.tokens = said

    def kept(self, count: int) -> list[int]:
        """Return, of each `count` neighbouring texts, the index of the one with the best mean score."""
        sums = self.scores.masked_fill(~self.is_free, 0.0).sum(1) / self.is_free.sum(1).clamp(min=1)
        best = sums.view(-1, count).argmax(1)
        return (torch.arange(len(best), device=best.device) * count + best).tolist()


@dataclass(frozen=True)
class Refinement(WholeMethod):
    """Base of the rules that refine.

    Attributes:
        passes: most passes over a text.
        lengths: how many of the likeliest lengths are tried for each text.
        template: what the text must be, gaps apart: "{3}" stands for three tokens that are to be written; "" = it is
            free. It goes for every text of a call.
    """

    passes: int = setting(10, least=1)
    lengths: int = setting(1, least=1)
    template: str = ""

    kinds: ClassVar[tuple[str, ...]] = ("cmlm", "sga")

    @abstractmethod
    def step(self, net: Cmlm, draft: Draft, at: int, blank: Tensor, first: Tensor | None) -> None:
        """Do pass `at`: read the texts, and write what the rule wants to write of them (`Draft.write`).

        Args:
            net: the network.
            draft: the texts.
            at: number of the pass, from 0.
            blank: [R, L], what unwritten places read.
            first: what the first pass says, where it has been run; else None.
        """

    @torch.no_grad()
    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Refine; see `WholeMethod.choose`."""
        assert context.cache is not None
        net, outputs = cast("Cmlm", model.net), outputs_of(context.cache)[1]
        given = self._given(net, context)
        run = net.resumed(outputs, 1 if given else self.lengths)
        if given:
            net.lay(run, torch.full((len(run.states),), len(given), device=model.device))
        blank = net.blanks(run.is_place.sum(1))
        told = torch.tensor(given or [-1] * blank.shape[1], device=model.device).expand(blank.shape)
        draft = Draft(run, torch.where(told < 0, blank, told), run.is_place & (told < 0))
        first = outputs[0] if self.lengths == 1 and not given else None  # the model has run this pass already
        for at in range(self.passes):
            if first is None:
                context.cache.counter.add(blank.numel(), 1)
            self.step(net, draft, at, blank, first)
            first = None
            if bool((draft.is_done | ~draft.is_free.any(1)).all()):
                break
        return [self._laws(model, draft, row) for row in draft.kept(len(blank) // len(context.sources))]

    def _laws(self, model: NarModel, draft: Draft, row: int) -> Tensor:
        """Return the laws of a text: what is given is certain."""
        vocab, laws = model.capabilities.vocab_size, draft.laws[row].to(model.dtype).clone()
        for place in (draft.run.is_place[row] & ~draft.is_free[row]).nonzero()[:, 0].tolist():
            laws[place] = end_law(vocab, int(draft.tokens[row, place]), model.dtype)[0]
        return model.ended(laws[draft.run.is_place[row]])

    def _given(self, net: Cmlm, context: Context) -> list[int]:
        """Return the template's tokens, -1 in its gaps.

        Raises:
            ConfigError: it has no gap or too many places, or holds a special token; or there is no tokenizer.
        """
        if not self.template:
            return []
        tokenizer = context.tokenizers.get("target")
        if tokenizer is None:
            raise ConfigError("A template is text, but the model has no tokenizer.", "Give the model a tokenizer.")
        pieces, tokens = _GAP.split(self.template), list[int]()
        for text, gap in zip(pieces[::2], [*pieces[1::2], "0"], strict=True):
            tokens += [*tokenizer.encode(text, is_special=False), *[-1] * int(gap)]
        if -1 not in tokens or len(tokens) > net.lengths.most or set(tokens) & set(net.unsaid):
            raise ConfigError(
                f"The template {self.template!r} cannot be filled in.",
                f"Put {{n}} for n tokens, at least one, into at most {net.lengths.most}; no special tokens.",
            )
        return tokens


def lowest(scores: Tensor, is_free: Tensor, counts: Tensor) -> Tensor:
    """Return which free places [R, L] have the `counts` [R] lowest scores [R, L]; of equal ones the first."""
    ranks = scores.masked_fill(~is_free, float("inf")).argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks < counts[:, None]) & is_free
