"""Drafting with a model of another vocabulary: as text, or behind an adapter that speaks the target's tokens.

The drafter reads the row's text in its own ids, which are kept up to date; its cache keeps whatever of them stays true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.draft.model import draft_chain
from outpace.draft.psi import MOST_ROUNDS, StringLaw, borders
from outpace.draft.reading import Drafter, read_nodes, read_texts
from outpace.draft.source import originals
from outpace.draft.strings import Lexicon, Respelling, lexicon
from outpace.errors import CapabilityError
from outpace.run.tree import TokenTree
from outpace.sampling import Sampler, Sampling
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Context, Counter, Outputs, Scores, View

__all__ = ["ForeignDrafter", "SharedTokens", "StringTokens"]

_STAGED = 256 + 64  # tokens that catching up, and a tree, may stage at once


@dataclass
class ForeignDrafter:
    """A drafter of another vocabulary, its cache, and each row's text in its ids."""

    adapter: Adapter
    words: Lexicon
    cache: Cache
    texts: list[Respelling]

    @staticmethod
    def begin(context: Context, *, is_shared: bool = False, max_vocab: int = 0) -> ForeignDrafter:
        """Lay the vocabularies side by side, and return the drafter with an empty cache for the joining rows.

        Args:
            context: of the joining rows.
            is_shared: drafts are tokens that both vocabularies write alike.
            max_vocab: drafts follow the law of strings, summed over vocabularies of this size at most; 0 = they do not.

        Raises:
            CapabilityError: the two cannot be brought together this way.
        """
        drafter, target = context.models["draft"], context.target.capabilities
        offered = drafter.capabilities
        words = lexicon(
            context.tokenizers["target"], context.tokenizers["draft"], target.vocab_size, offered.vocab_size
        )
        for role, speller in (("target", words.target), ("draft", words.draft)):
            if not speller.ids:
                raise CapabilityError(
                    f"The {role} model's tokenizer does more than join bytes when it decodes.",
                    "Name a drafter with a byte-level or sentencepiece tokenizer.",
                )
        if offered.is_encoder_decoder != target.is_encoder_decoder:
            raise CapabilityError(
                "One of the two models has an encoder, the other has none.", "Name a drafter of the target's kind."
            )
        if is_shared and max(words.shared) < 0:
            raise CapabilityError("The two vocabularies share no token.", "Use mode=slem.")
        largest = max(words.target.size, words.draft.size)
        if max_vocab and largest > max_vocab:
            raise CapabilityError(
                f"A vocabulary has {largest} tokens, but mode=slrs sums over at most {max_vocab}.",
                "Use mode=slem or tli, or raise max_vocab.",
            )
        if max_vocab and not offered.has_tree:
            raise CapabilityError("mode=slrs needs a drafter with tree attention.", "Use mode=slem or tli.")
        cache = drafter.new_cache(len(context.texts), context.capacity, context.counters["draft"])
        if not offered.is_encoder_decoder:
            return ForeignDrafter(drafter, words, cache, [Respelling(words) for _ in context.texts])
        ours, theirs = context.tokenizers["target"], context.tokenizers["draft"]
        drafter.encode([theirs.encode(ours.decode(source)) or [0] for source in originals(context)], cache)
        return ForeignDrafter(drafter, words, cache, [Respelling(words, drafter.start_token) for _ in context.texts])

    def reach(self, view: View, lengths: Sequence[int]) -> list[int]:
        """Return how many tokens of the target each row may draft, for all that its text allows."""
        return [max(0, min(length, room - 1)) for length, room in zip(lengths, view.room, strict=True)]

    def read(self, view: View, lengths: Sequence[int], is_text: bool) -> list[int]:
        """Take in the rows' new text; return how many steps each row may draft.

        Args:
            view: the run.
            lengths: tokens of the target wanted.
            is_text: steps are the drafter's tokens, as many as spell that many of the target's; else the target's.

        Returns:
            Steps; 0 where a row stands inside a character, or at the end of the drafter's context.
        """
        steps = []
        for text, row, length in zip(view.texts, self.texts, lengths, strict=True):
            row.extend(text)
            wanted = math.ceil(length * row.ratio) if is_text else length
            ahead = self.adapter.capabilities.max_positions - len(row.ids)
            steps.append(max(0, min(wanted, ahead)) if row.ids and row.is_whole else 0)
        self.cache.truncate([row.forget() for row in self.texts])
        self.make_room(max(max(len(row.ids), len(row.held)) for row in self.texts) + max(steps))
        return steps

    def make_room(self, size: int) -> None:
        """Move to a larger cache where texts of this size, with what is staged behind them, have outgrown the old."""
        size += _STAGED
        if size <= self.cache.capacity:
            return
        old, self.cache = self.cache, self.adapter.new_cache(len(self.texts), size * 3 // 2, self.cache.counter)
        self.cache.lengths, self.cache.phases, self.cache.extra = list(old.lengths), list(old.phases), old.extra
        self.cache.reserve(old.slots)
        for there, here in zip(old.buffers, self.cache.buffers, strict=True):
            here.narrow(old.slot_axis, 0, old.slots).copy_(there)

    def own_view(self, view: View, texts: Sequence[Sequence[int]]) -> View:
        """Return a view of these ids, to draft greedily."""
        ids = [list(text) for text in texts]
        return replace(
            view, texts=ids, prompts=[len(text) for text in ids], cache=self.cache,
            sampler=Sampler(Sampling(), view.sampler.keys),
        )  # fmt: skip

    def hold(self, ids: Sequence[Sequence[int]]) -> None:
        """Note what the cache holds now: of these ids, as many as it has entries."""
        for row, text, length in zip(self.texts, ids, self.cache.lengths, strict=True):
            row.held = list(text[:length])

    def draft_text(self, view: View, lengths: Sequence[int], min_confidence: float) -> list[list[int]]:
        """Let the drafter write on, and return each row's drafts in the target's tokens, at most `lengths`."""
        steps = self.read(view, lengths, is_text=True)
        if max(steps) == 0:
            return [[] for _ in steps]
        shadow = self.own_view(view, [row.ids for row in self.texts])
        drafted = draft_chain(
            Drafter(self.adapter, self.cache), shadow, steps, origin="", min_confidence=min_confidence
        )
        tokens = drafted.tokens.tolist()
        self.hold([row.ids + found for row, found in zip(self.texts, tokens, strict=True)])
        rows = zip(view.texts, tokens, drafted.length, lengths, strict=True)
        return [self.words.to_target(text, found[:count])[:length] for text, found, count, length in rows]


class _Speaking(Adapter):
    """The drafter behind an adapter of the target's vocabulary, for one step: `draft_chain` drafts with it.

    It is asked for the logits after the texts first, then fed one token per row and call; rows at position -1 rest.
    """

    margin = 1  # positions that a law needs behind the text

    def __init__(self, drafter: ForeignDrafter, view: View) -> None:
        self.drafter, self.view = drafter, view
        self.ids = [list(row.ids) for row in drafter.texts]
        self._is_first = True
        own = drafter.adapter.capabilities
        self.capabilities = Capabilities(drafter.words.target.size, own.max_positions)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache that only counts: the drafter's own entries are elsewhere."""
        device = self.drafter.cache.device
        return Cache([torch.zeros(rows, capacity, 0, device=device)], 1, counter)

    def cache_for(self, view: View) -> Cache:
        """Return the counting cache of texts that were read but for their last token."""
        cache = self.new_cache(len(view.texts), 1)
        cache.lengths = [length - 1 for length in view.lengths]
        return cache

    def embed(self, tokens: Tensor) -> Tensor:
        """Refuse: the drafter knows no such tokens."""
        raise CapabilityError("A drafter of another vocabulary has no embeddings of the target's tokens.")

    def head(self, hidden: Tensor) -> Tensor:
        """Refuse: a law over the target's tokens is made of several of the drafter's."""
        raise CapabilityError("A drafter of another vocabulary has no output matrix for the target's tokens.")

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
        """Return the drafter's law over the target's tokens, [B, 1, V]."""
        del visible, cache, ask, outputs, inputs, skip
        running = [place >= 0 for place in position[:, 0].tolist()]
        if not self._is_first:
            for row, token in enumerate(tokens[:, 0].tolist()):
                if running[row]:
                    self.ids[row] += self.spell(token)
        self._is_first = False
        self.drafter.make_room(max(map(len, self.ids)))
        # A row at the end of the drafter's context rests: it drafts from any law, which is checked like every other.
        last = self.drafter.adapter.capabilities.max_positions - self.margin
        reach = [int(is_on and len(ids) <= last) for is_on, ids in zip(running, self.ids, strict=True)]
        if not any(reach):
            return Scores(torch.zeros(len(reach), 1, self.capabilities.vocab_size, device=position.device))
        logits = self.law(self.drafter.own_view(self.view, self.ids), reach)
        self.drafter.hold(self.ids)
        return Scores(logits.unsqueeze(1))

    def spell(self, token: int) -> list[int]:
        """Return the drafter's ids for a drafted token of the target."""
        raise NotImplementedError

    def law(self, own: View, reach: list[int]) -> Tensor:
        """Return logits over the target's tokens after each row's ids, [B, V]; rows of reach 0 rest."""
        raise NotImplementedError


class SharedTokens(_Speaking):
    """Token-level intersection: the drafter's law on the tokens that both vocabularies write alike."""

    def spell(self, token: int) -> list[int]:
        """Return the drafter's id of the same token."""
        return [max(0, self.drafter.words.shared[token])]

    def law(self, own: View, reach: list[int]) -> Tensor:
        """Read the texts, and keep the logits of shared tokens; sampling from them renormalises."""
        logits = read_texts(self.drafter.adapter, self.drafter.cache, own, reach)
        shared = self.drafter.words.shared_ids.to(logits.device)
        return logits.index_select(1, shared.clamp(min=0)).masked_fill_(shared < 0, float("-inf"))


class StringTokens(_Speaking):
    """String level: the law of the target token that the drafter's string begins with."""

    margin = MOST_ROUNDS + 1

    def __init__(self, drafter: ForeignDrafter, view: View, paths: int) -> None:
        super().__init__(drafter, view)
        self._paths = paths

    def spell(self, token: int) -> list[int]:
        """Return ids that spell the token."""
        words = self.drafter.words
        text = words.target.bytes[token]
        return words.draft.spell(text) if text else [max(0, words.shared[token])]

    def law(self, own: View, reach: list[int]) -> Tensor:
        """Follow the likeliest sequences of drafter tokens, all rows side by side, a round per forward."""
        drafter = self.drafter
        laws = [StringLaw(borders(drafter.words), self._paths) for _ in reach]
        logits = read_texts(drafter.adapter, drafter.cache, own, reach).unsqueeze(1)
        for law, ahead in zip(laws, reach, strict=True):
            law.front = law.front if ahead else []
        while True:
            probs = logits.double().softmax(-1).cpu()
            for row, law in enumerate(laws):
                if law.front:
                    law.follow(probs[row, : len(law.front)])
            if not any(law.front for law in laws):
                return torch.stack([law.log_probs() for law in laws]).to(logits.device)
            logits = self._behind(laws)

    def _behind(self, laws: Sequence[StringLaw]) -> Tensor:
        """Return the logits behind every node of the fronts, [B, F, V]."""
        device = self.drafter.cache.device
        length, wide = [len(law.tokens) for law in laws], max(len(law.front) for law in laws)
        table = [_padded([law.tokens for law in laws], 0), _padded([law.parents for law in laws], -1)]
        tokens, parents = (torch.tensor(rows, device=device) for rows in table)
        nodes = torch.tensor([law.front + [0] * (wide - len(law.front)) for law in laws], device=device)
        is_real = torch.tensor([[at < len(law.front) for at in range(wide)] for law in laws], device=device)
        tree = TokenTree(tokens, parents, length)
        return read_nodes(self.drafter.adapter, self.drafter.cache, tree, nodes, is_real)


def _padded(rows: Sequence[list[int]], value: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [row + [value] * (longest - len(row)) for row in rows]
