"""A masked network that learns in which order its places are written.

Paper: Wang et al. (2025), arXiv 2503.05979 (LO-ARM). At each step a policy that sees what is written says which open
place comes next, and the network says its token. The order is latent: a second network, which sees the whole text,
guesses it, and the bound on the text's likelihood is averaged over the guesses (equation 5).
Differences: places of a text, filled up with ends, in place of the nodes and edges of a graph; the guess is one layer,
whose scores depend on the text alone, so that a whole order is one draw (Plackett-Luce).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.models.continuous.compressor import filled
from outpace.models.editing.encoder import Layer
from outpace.papers import Paper

from .network import NarConfig, NarNet, Pass

__all__ = ["PAPERS", "Ordered", "OrderedConfig", "bound", "chance_of", "order_of", "part_of_bound"]

PAPERS = (
    Paper(
        "Learning-Order Autoregressive Models with Application to Molecular Graph Generation",
        "Wang et al.",
        2025,
        "2503.05979",
        111,
        "Graphs, and validity as chemists check it.",
        "outpace train molecules-ordered",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedConfig(NarConfig):
    """Sizes of a network with an order.

    Attributes:
        length: L, places of a text, ends included.
        order: "learned", or "random": every open place is equally likely, for comparison.
        mask_token: stands for no token; never written.

    Raises:
        ConfigError: an order that there is not, or no place.
    """

    length: int = 32
    order: Literal["learned", "random"] = "learned"
    mask_token: int = 1

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if self.order not in ("learned", "random") or self.length < 1:
            raise ConfigError(f"There is no {self.order!r} order of {self.length} places.", "Say learned or random.")


class Ordered(NarNet):
    """A text of L places, written one by one."""

    Config = OrderedConfig
    kind: ClassVar[str] = "ordered"
    own_layers: ClassVar[bool] = True
    config: OrderedConfig

    def __init__(self, config: OrderedConfig) -> None:
        super().__init__(config)
        self.unsaid = (config.mask_token, config.start_token)
        self.policy, self.guess = nn.Linear(config.width, 1), nn.Linear(config.width, 1)
        self.guess_layer, self.guess_norm = Layer(config, has_cross=True), nn.LayerNorm(config.width)
        for head in (self.policy, self.guess):  # from the uniform order
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Return L places for each row, all of them masked."""
        shape = len(run.sources), self.config.length
        blank = torch.full(shape, self.config.mask_token, device=run.sources.device)
        return self.embed_tokens(blank), torch.ones(shape, dtype=torch.bool, device=blank.device)

    def said(self, run: Pass, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [B, L, V] of tokens, and of the next place [B, L], behind tokens [B, L] with masks.

        A place that is written has the log-probability minus infinity, unless all are.
        """
        run.inputs = self.embed_tokens(tokens)
        hidden = self.decode(run)
        return self.head(hidden), self._next(self.policy(hidden)[..., 0], tokens == self.config.mask_token)

    def scores(self, run: Pass, tokens: Tensor) -> Tensor:
        """Return how early the guess wants each place of whole texts [B, L], as logits [B, L]."""
        if self.config.order == "random":
            return torch.zeros(tokens.shape, dtype=self.policy.weight.dtype, device=tokens.device)
        state = self.embed_tokens(tokens) + self.place_positions.weight[: tokens.shape[1]]
        seen, real = torch.ones_like(tokens, dtype=torch.bool)[:, None, None, :], run.is_real[:, None, None, :]
        found: Tensor = self.guess(self.guess_norm(self.guess_layer(state, seen, run.states, real)))[..., 0]
        return found

    def _next(self, scores: Tensor, is_open: Tensor) -> Tensor:
        if self.config.order == "random":
            scores = torch.zeros_like(scores)
        return chance_of(scores, is_open)

    def finish(self, run: Pass) -> list[Tensor]:
        """Write all places, each time the likeliest one with its likeliest token; return the laws."""
        tokens = torch.full(run.is_place.shape, self.config.mask_token, device=run.sources.device)
        laws = run.states.new_zeros(*tokens.shape, self.config.vocab_size)
        rows = torch.arange(len(tokens), device=tokens.device)
        for _ in range(self.config.length):
            log_probs, following = self.said(run, tokens)
            at = following.argmax(-1)
            laws[rows, at] = log_probs[rows, at].to(laws)
            tokens[rows, at] = log_probs[rows, at].argmax(-1)
        return [laws]

    def loss(self, run: Pass) -> Tensor:
        """Return minus the bound [B], in nats: its value and gradient are unbiased, from two orders (section 3.3)."""
        text = filled(run, self.config.length, self.config.end_token)
        scores = self.scores(run, text)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        known = torch.randint(self.config.length, (len(text),), device=text.device)
        parts, chances = list[Tensor](), list[Tensor]()
        for _ in range(2):
            order = order_of(scores.detach())
            found, chance = part_of_bound(self, run, text, scores, order, known)
            parts.append(found)
            chances.append(chance)
        # Each order is judged by the other one: a baseline that costs nothing and leaves the gradient unbiased.
        gain = (parts[0] - parts[1]).detach() * (chances[0] - chances[1]) / 2
        return -(parts[0] + parts[1]) / 2 - gain + gain.detach()

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return minus an estimate of the bound [B]; the outputs are of one order, and say nothing of others."""
        del outputs
        return -bound(self, run, 1)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the targets with their ends."""
        del outputs
        return filled(run, self.config.length, self.config.end_token)

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the laws of the tokens."""
        del is_place
        return list(outputs[0])


def chance_of(scores: Tensor, is_open: Tensor) -> Tensor:
    """Return log-probabilities [B, L] of the next place: a softmax of the scores over open places."""
    closed = scores.masked_fill(~is_open, float("-inf"))
    return (closed if closed.dtype == torch.float64 else closed.float()).log_softmax(-1)


def order_of(scores: Tensor) -> Tensor:
    """Return an order [B, L] drawn by Plackett and Luce's law: the places by score plus Gumbel noise, best first."""
    noise = -torch.empty_like(scores).exponential_().log()
    return (scores + noise).argsort(-1, descending=True)


def part_of_bound(
    net: Ordered, run: Pass, text: Tensor, scores: Tensor, order: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Return an unbiased estimate [B] of the bound from one step of an order, and the log-probability of what precedes.

    Args:
        net: the network.
        run: the sources.
        text: [B, L] int64, whole texts with their ends.
        scores: [B, L], of the guess.
        order: [B, L] int64, drawn from it.
        known: [B] int64, how many places are written; equally likely from 0 to L - 1.
    """
    length = text.shape[1]
    rank = order.argsort(-1)
    is_open = rank >= known[:, None]
    log_probs, policy = net.said(run, torch.where(is_open, net.config.mask_token, text))
    guess = chance_of(scores, is_open)
    token = log_probs.gather(-1, text[..., None])[..., 0].to(guess)
    # The next place is summed over, not drawn.
    gain = torch.where(is_open, token + policy.to(guess) - guess, 0.0)
    found = length * (torch.where(is_open, guess, float("-inf")).exp() * gain).sum(-1)
    in_order = scores.gather(-1, order)
    rest = in_order.flip(-1).logcumsumexp(-1).flip(-1)
    is_before = torch.arange(length, device=text.device) < known[:, None]
    return found, torch.where(is_before, in_order - rest, 0.0).sum(-1)


@torch.no_grad()
def bound(net: Ordered, run: Pass, samples: int) -> Tensor:
    """Return an unbiased estimate [B] of the bound on the log-likelihood of a pass's targets, in nats."""
    text = filled(run, net.config.length, net.config.end_token)
    scores, found = net.scores(run, text), torch.zeros(len(text), device=text.device)
    for sample in range(samples):
        spread = torch.arange(len(text), device=text.device) + sample * len(text) // samples
        known = (spread + torch.randint(net.config.length, (), device=text.device)) % net.config.length
        found = found + part_of_bound(net, run, text, scores, order_of(scores), known)[0] / samples
    return found
