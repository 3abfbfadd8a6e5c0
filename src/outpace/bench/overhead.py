"""Time outside the forwards: the real loop on a model that costs nothing and always agrees with a chain of 16."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.cache import Cache
from outpace.methods.base import Method, chain
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Needs, Outputs, Proposal, Scores, View

__all__ = ["CHAIN", "FixedChain", "PresetModel", "overhead"]

CHAIN = 16
LAWS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "T 0.7, top-k 50, top-p 0.9": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
}


class PresetModel(Adapter):
    """An adapter that returns preset logits without computing: node i is followed by token i + 1.

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self.capabilities = Capabilities(vocab_size, 1 << 20)
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(1, CHAIN + 1, vocab_size, generator=generator) * 3
        nodes = torch.arange(CHAIN + 1)
        self.logits[0, nodes, nodes] += 100

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache that holds one number per slot."""
        return Cache([torch.zeros(rows, 1, capacity, 1)], 2, counter)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return no numbers: there is no hidden state."""
        return torch.zeros(*tokens.shape, 0)

    def head(self, hidden: Tensor) -> Tensor:
        """Return the first row of the preset logits."""
        return self.logits[0, 0].expand(*hidden.shape[:-1], -1)

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
        """Return the first rows of the preset logits; see `outpace.types.Adapter`."""
        del position, visible, outputs, inputs, skip
        cache.counter.add(tokens.shape[1], 1)
        return Scores(self.logits[:, : tokens.shape[1] if ask is None else ask.shape[1]])


@dataclass(frozen=True)
class FixedChain(Method):
    """Proposes tokens 0 to 15 every time: the least that any drafter costs."""

    name: ClassVar[str] = "fixed-chain"

    @property
    def needs(self) -> Needs:
        """Room for the chain."""
        return Needs(has_rollback=True, width=CHAIN)

    def propose(self, view: View, state: Any) -> Proposal:
        """Return the chain."""
        del state
        return chain(view, [list(range(CHAIN))], self.name)


def overhead(vocab_size: int, law: str, method: str, steps: int = 60, repeats: int = 5) -> dict[str, Any]:
    """Return milliseconds per step outside the forwards, every draft accepted.

    Args:
        vocab_size: V.
        law: a key of `LAWS`.
        method: "fixed-chain" or "prompt-lookup".
        steps: per run.
        repeats: runs, after one that warms up; the median counts.
    """
    lm = LanguageModel(PresetModel(vocab_size), None, name="preset")
    chosen = FixedChain() if method == FixedChain.name else PromptLookup(draft_len=CHAIN)
    prompt = list(range(CHAIN + 1)) * 8
    found: dict[str, list[float]] = {"total": [], "draft": [], "accept": [], "other": []}
    tokens_per_step = 0.0
    for number in range(repeats + 1):
        result = lm.generate(prompt, method=chosen, max_tokens=steps * (CHAIN + 1), **LAWS[law])
        taken, timing = result.usage.num_steps, result.timing
        tokens_per_step = len(result.tokens) / taken
        if number:
            outside = timing["decode_s"] - timing["score_s"]
            found["total"].append(outside / taken)
            for name in ("draft", "accept", "other"):
                found[name].append(timing[f"{name}_s"] / taken)
    medians = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in found.items()}
    return {"vocab": vocab_size, "law": law, "method": method, "tokens_per_step": tokens_per_step, **medians}
