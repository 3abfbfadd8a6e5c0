"""A causal model that reads some parts of a prompt in no order: they share positions and do not see each other.

Source: McIlroy-Young, Brown, Olson, Zhang and Dwork (2024), Set-Based Prompting, arXiv 2406.06581,
section 3: parallel sub-sequences begin at one position and are masked from each other; what follows begins behind the
longest of them, and sees all.

Guarantee: where the parts stand among themselves changes the text not at all, but for the rounding of sums.
Cost: a mask with every forward; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache, Pages
from outpace.errors import CapabilityError, ConfigError
from outpace.papers import Paper
from outpace.types import NO_OUTPUTS, Adapter, Counter, Outputs, Scores

__all__ = ["PAPERS", "SetPrompt", "SetTarget", "lay_sets"]

PAPERS = (
    Paper(
        "Set-Based Prompting: Provably Solving the Language Model Order Dependency Problem",
        "McIlroy-Young et al.",
        2024,
        "2406.06581",
        153,
        "",
        'outpace generate "Tom had[[ a ball,| a dog,]] and he" --sets --model stories --method autoregressive',
    ),
)


@dataclass(frozen=True, slots=True)
class SetPrompt:
    """The tokens of a prompt, and where those stand that have no order.

    Attributes:
        tokens: in the order in which they are read.
        positions: the position of each.
        sets: of which set each is a part, from 1; 0 = of none.
        members: of which member of its set, from 0.
        shift: places by which the text behind the prompt moves ahead, since members share theirs.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    sets: tuple[int, ...]
    members: tuple[int, ...]
    shift: int


def lay_sets(parts: Sequence[Sequence[int] | Sequence[Sequence[int]]]) -> SetPrompt:
    """Return where the tokens of a prompt stand.

    Args:
        parts: in order; token ids, or a set: a sequence of members, token ids each, of which none is empty.
    """
    rows, place, number = list[tuple[int, int, int, int]](), 0, 0
    for part in parts:
        if part and not isinstance(part[0], int):
            number += 1
            members: Sequence[Sequence[int]] = part  # type: ignore[assignment]
            rows += [(t, place + i, number, m) for m, member in enumerate(members) for i, t in enumerate(member)]
            place += max(len(member) for member in members)
        else:
            rows += [(token, place + i, 0, 0) for i, token in enumerate(part)]  # type: ignore[misc]
            place += len(part)
    tokens, positions, sets, members_of = zip(*rows, strict=True)
    return SetPrompt(tokens, positions, sets, members_of, len(rows) - place)


class SetTarget(Adapter):
    """A target that reads the rows of one prompt as its sets say, and is otherwise what it was.

    Args:
        target: a causal model that honours masks between tokens; `around` makes sure of that.
        laid: the prompt.
    """

    def __init__(self, target: Adapter, laid: SetPrompt) -> None:
        self.target, self.laid = target, laid
        for name in ("capabilities", "device", "dtype", "notes", "path", "is_invariant", "is_quantised", "tokenizer"):
            setattr(self, name, getattr(target, name))
        for name in ("shape", "mask_token", "own_mask", "exits", "layer_weights", "head_weights"):
            setattr(self, name, getattr(target, name))
        self.reads_at_once = len(laid.tokens)  # entries of one member in the cache would be seen by the next
        columns = (laid.positions, laid.sets, laid.members)
        self._positions, self._sets, self._members = (torch.tensor(c, device=target.device) for c in columns)

    @staticmethod
    def around(target: Adapter, laid: SetPrompt) -> SetTarget:
        """Return the target, made to read the sets of a prompt.

        Raises:
            CapabilityError: it cannot.
        """
        _check(target, len(laid.tokens))
        return SetTarget(target, laid)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return the target's cache."""
        return self.target.new_cache(rows, capacity, counter)

    def new_pool(self, num_pages: int, page_size: int = 32) -> Pages | None:
        """Return the target's pool."""
        return self.target.new_pool(num_pages, page_size)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the target's embeddings."""
        return self.target.embed(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        """Return the target's logits."""
        return self.target.head(hidden)

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
        """Run one forward; positions are those of a plain prompt, and are moved here.

        Raises:
            ConfigError: a forward begins inside a set, so that members would see each other through the cache.
        """
        last = len(self.laid.tokens) - 1
        inside = position.clamp(0, last)
        is_prompt = (position >= 0) & (position <= last)
        own = torch.where(is_prompt, self._sets[inside], 0)
        member = torch.where(is_prompt, self._members[inside], 0)
        if any(0 < held <= last and self._parts(held) for held in cache.lengths):
            raise ConfigError("A forward begins inside a set.", "Read the prompt in one forward.")
        if visible is None:
            visible = (position >= 0)[:, None].expand(-1, position.shape[1], -1).tril()
        is_apart = (own[:, :, None] == own[:, None]) & (own > 0)[:, None] & (member[:, :, None] != member[:, None])
        place = torch.where(is_prompt, self._positions[inside], position - self.laid.shift)
        place = torch.where(position >= 0, place, -1)
        return self.target.score(tokens, place, visible & ~is_apart, cache, ask, outputs, inputs, skip)

    def _parts(self, held: int) -> bool:
        """Return whether the tokens before and after a border are of one set."""
        return 0 < self.laid.sets[held] == self.laid.sets[held - 1]


def _check(target: Adapter, size: int) -> None:
    offered = target.capabilities
    if offered.attention != "causal" or offered.is_encoder_decoder or not offered.has_tree:
        raise CapabilityError(
            "The model cannot read parts in no order: it does not go from left to right, or keeps masks of its own.",
            "Use a causal model that drafts may branch on, such as stories.",
        )
    if offered.turns_at:
        raise CapabilityError("Positions of this model turn by the length of the text.", "Use a model without that.")
    window = _window(target)
    if 0 < window < size:
        raise CapabilityError(
            f"The prompt has {size} tokens; layers of this model see the last {window} alone.",
            "Shorten the prompt.",
        )
    if hasattr(target, "spec"):
        return
    # A model of another library may count slots of the cache where it should count positions: it is asked.
    first, second = ([[5, 6], [7]], [[7], [5, 6]])
    logits = [_probe(target, lay_sets([[4], members, [8]]))[0] for members in (first, second)]
    scale = logits[0].abs().max()
    if (logits[0] - logits[1]).abs().max() > 1e-3 * scale * (1 if target.dtype.itemsize > 2 else 50):
        raise CapabilityError(
            "The model tells parts that share positions apart by their order.", "Use a model with rotary positions."
        )


@torch.no_grad()
def _probe(target: Adapter, laid: SetPrompt) -> Tensor:
    """Return [V] the logits of the token behind a prompt and one more, which reads the prompt from the cache."""
    reader, size = SetTarget(target, laid), len(laid.tokens)
    cache = target.new_cache(1, size + 8)
    tokens = torch.tensor([[*laid.tokens, 9]], device=target.device)
    reader.score(tokens[:, :size], torch.arange(size, device=target.device)[None], None, cache)
    cache.keep([range(size)])
    return reader.score(tokens[:, size:], torch.tensor([[size]], device=target.device), None, cache).logits[0]


def _window(target: Any) -> int:
    """Return the fewest latest positions that a layer sees; 0 = all see all."""
    if hasattr(target, "spec"):
        return min((window for window in target.spec.windows if window), default=0)
    config = target.model.config if hasattr(target, "model") else None
    return int(getattr(config, "sliding_window", 0) or 0)
