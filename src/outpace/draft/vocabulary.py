"""A drafter that speaks only the most frequent tokens: counting them, choosing them, and cutting its head to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.draft.memory import Memory
from outpace.draft.reading import Drafter
from outpace.errors import ConfigError
from outpace.types import NO_OUTPUTS, Adapter, Context, Counter, Outcome, Outputs, Scores, View

__all__ = ["TokenCounts", "TrimmedDrafter", "TrimmedHead", "count_tokens", "memory_bound_speedup"]


class TokenCounts(Memory):
    """How often each token was written; outlives calls, and goes to a file and back.

    Args:
        counts: occurrences by token id.

    Raises:
        ConfigError: an id or a count is below 0.
    """

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        super().__init__()
        self.counts = dict(counts or {})
        self.note(list(self.counts))
        if min(self.counts.values(), default=0) < 0:
            raise ConfigError("A token count is below 0.", "Count how often each token was written.")

    def add(self, tokens: Sequence[int]) -> None:
        """Count the tokens of a text."""
        for token in tokens:
            self.counts[token] = self.counts.get(token, 0) + 1

    def most_frequent(self, size: int, vocab_size: int) -> list[int]:
        """Return the `size` most frequent ids, ascending. Equals, such as all that were never seen: the lower id.

        Vocabularies made by merging (byte-pair encoding) number tokens roughly by falling frequency, so that the lower
        id is the better guess.
        """
        order = sorted(range(vocab_size), key=lambda token: -self.counts.get(token, 0))
        return sorted(order[:size])

    def save(self, file: str | Path) -> None:
        """Write the counts as one JSON object from id to count."""
        Path(file).write_text(json.dumps({str(token): n for token, n in sorted(self.counts.items())}), encoding="utf-8")

    @staticmethod
    def read(file: str | Path) -> TokenCounts:
        """Read counts from a JSON object of ids and counts, or a list of counts by id.

        Raises:
            ConfigError: the file is missing, or holds something else.
        """
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8"))
            pairs = found.items() if isinstance(found, dict) else enumerate(found)
            return TokenCounts({int(token): int(count) for token, count in pairs if count})
        except OSError as error:
            raise ConfigError(
                f"The token counts {str(file)!r} cannot be read.", "Write them with count_tokens."
            ) from error
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"The file {str(file)!r} holds no token counts.", "Write one JSON object from token id to count."
            ) from error

    def rows(self, index: Sequence[int]) -> TokenCounts:
        """Return itself: the rows of a run share it."""
        del index
        return self

    def join(self, counts: Sequence[TokenCounts]) -> TokenCounts:
        """Return itself: rows that join count into the same object."""
        del counts
        return self


class _Writer(Protocol):
    @property
    def generate(self) -> Callable[..., Any]:
        """As `LanguageModel.generate`."""
        ...


def count_tokens(lm: _Writer, prompts: Sequence[Any], **arguments: Any) -> TokenCounts:
    """Let a model write after some prompts, as its users would, and count what it wrote.

    Args:
        lm: the target, an `outpace.LanguageModel`.
        prompts: texts or lists of ids.
        **arguments: of `generate`: max_tokens, temperature, num_samples, method, ...
    """
    counts = TokenCounts()
    for prompt in prompts:
        results = lm.generate(prompt, **arguments)
        for result in results if isinstance(results, list) else [results]:
            counts.add(result.tokens)
    return counts


class TrimmedHead(Adapter):
    """An adapter that gives every token outside a list no chance; where it can, without computing their logits.

    Our own decoder drops the other rows of its head (`Transformer.trim_head`). Another adapter computes all logits, and
    the others are masked: the same drafts, but nothing saved.

    Args:
        adapter: the drafter.
        ids: the tokens that stay, ascending.
    """

    def __init__(self, adapter: Adapter, ids: Sequence[int]) -> None:
        self.capabilities = adapter.capabilities
        self.device, self.dtype = adapter.device, adapter.dtype
        self._ids = torch.tensor(list(ids), dtype=torch.int64, device=self.device)
        trimmed = adapter.trim_head(self._ids)
        self.is_sliced = trimmed is not None
        self._inner = trimmed or adapter

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return the drafter's own cache."""
        return self._inner.new_cache(rows, capacity, counter)

    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Run the drafter's encoder."""
        self._inner.encode(sources, cache)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the drafter's own embeddings."""
        return self._inner.embed(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits over the whole vocabulary, -inf outside the list."""
        return self._spread(self._inner.head(hidden))

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
        """Run one forward; logits are scattered back to the whole vocabulary, -inf elsewhere."""
        scores = self._inner.score(tokens, position, visible, cache, ask, outputs, inputs, skip)
        return replace(scores, logits=self._spread(scores.logits)) if outputs.has_logits else scores

    def _spread(self, logits: Tensor) -> Tensor:
        known = logits if self.is_sliced else logits[..., self._ids]
        spread = known.new_full((*known.shape[:-1], self.capabilities.vocab_size), float("-inf"))
        spread[..., self._ids] = known
        return spread


@dataclass
class TrimmedDrafter(Drafter):
    """A drafter whose head is cut, and the counts that go on, which the caller keeps; None = nobody does."""

    counts: TokenCounts | None = None

    @staticmethod
    def cut(context: Context, memory: TokenCounts | None, file: str, size: int) -> TrimmedDrafter:
        """Return the drafter of the joining rows with a head of the `size` tokens counted most.

        Args:
            context: of the joining rows.
            memory: the caller's counts, or None.
            file: of counts, read in place of the caller's; "" = none.
            size: tokens that stay; all of the vocabulary, or more = the drafter as it is.

        Raises:
            ConfigError: the file cannot be read, or counts another vocabulary.
        """
        vocab_size = context.target.capabilities.vocab_size
        counts = memory or TokenCounts()
        if file:
            counts = TokenCounts.read(file)
            counts.bind(vocab_size)
        adapter = context.models["draft"]
        if size < vocab_size:
            adapter = TrimmedHead(adapter, counts.most_frequent(size, vocab_size))
        return TrimmedDrafter(adapter, context.cache_for("draft"), memory)

    def forget(self, outcome: Outcome, view: View) -> None:
        """Drop drafted entries that did not become text, and count what was written."""
        super().forget(outcome, view)
        if self.counts is not None:
            for tokens in outcome.emitted:
                self.counts.add(tokens)


def memory_bound_speedup(tokens_per_step: float, draft_len: float, draft_bytes: float, target_bytes: float) -> float:
    """Return the speed-up over plain decoding where reading weights is all that takes time.

    Source: Goel et al. (2025), VocabTrim, arXiv 2506.22694, after Goel et al. (2024), arXiv 2403.00858: block
    efficiency / (c x draft length + 1), with c the drafter's size over the target's.

    Args:
        tokens_per_step: block efficiency, tokens written per target forward.
        draft_len: drafter forwards per target forward.
        draft_bytes, target_bytes: weights that one forward reads (of an embedding, one row).
    """
    return tokens_per_step / (draft_bytes / target_bytes * draft_len + 1)
