"""Each written token is read together with the law that it was drawn from.

Paper: Zhuang et al. (2025), "Text Generation Beyond Discrete Token Sampling", arXiv 2505.14827: the model reads
    sum_v w_v e_v with w = (h p + (beta + 1 - h) y) / (beta + 1), p the law, y the token drawn, h the entropy of p as a
    share of log V.
Guarantee: none against the model's own texts; `beta=inf`, the one-hot limit, is plain decoding, token for token.
Cost: no forward; a product of the law with the embeddings per token, and one vector per token in the cache.
Differences: p is the model's law before temperature and cuts. A draft's input depends on the law before it, so
    nothing can be drafted: methods that draft are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.cache import Cache, Counter
from outpace.errors import CapabilityError
from outpace.laws.base import Control, Site
from outpace.laws.beside import Around, as_logs
from outpace.models.fused import Layers
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import NO_OUTPUTS, Adapter, Outputs, Scores

__all__ = ["MixedInputs", "MixtureOfInputs"]

PAPERS = (
    Paper(
        "Text Generation Beyond Discrete Token Sampling",
        "Zhuang, Liu, Singh, Shang, Gao",
        2025,
        "2505.14827",
        124,
        "Its reasoning tasks and models of billions of parameters were not run.",
        command='outpace generate "Once upon a time" --law moi:beta=1 --temperature 0.6',
    ),
)


class MixedInputs(Around):
    """A target that reads mixtures; what a token's law was lies in the cache, in the slot of the token before it.

    Args:
        target: a causal model that takes soft inputs.
        beta: how much the token drawn counts; large = alone.

    Raises:
        CapabilityError: the target is no causal decoder.
    """

    def __init__(self, target: Adapter, beta: float) -> None:
        super().__init__(target)
        offered = target.capabilities
        if offered.attention != "causal" or offered.is_encoder_decoder:
            raise CapabilityError("Inputs are mixed for causal decoders.", "Use one.")
        self.beta, self.is_invariant = beta, False
        self.capabilities = replace(self.capabilities, has_tree=False, has_rollback=False)
        self._table = target.embed(torch.arange(offered.vocab_size, device=target.device).unsqueeze(0))[0]

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache with one more buffer: [..., slots, hidden + 1], mean input and entropy by slot."""
        cache = self.target.new_cache(rows, capacity, counter)
        shape = [rows, *[1] * (cache.slot_axis - 1), cache.slots, self._table.shape[-1] + 1]
        cache.buffers.append(torch.zeros(shape, dtype=self._table.dtype, device=cache.device))
        cache.extra = [torch.zeros(rows, 1, dtype=torch.int64, device=cache.device)]
        return cache

    def note_prompts(self, cache: Cache, prompts: Sequence[int]) -> None:
        """Note how long prompts are: they are read as they stand."""
        cache.extra = [torch.tensor([[size] for size in prompts], dtype=torch.int64, device=cache.device)]

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
        """Run one forward, in which each row reads its prompt or one written token."""
        is_written = position >= cache.extra[-1]
        if inputs is not None or int(is_written.sum(1).max()) > 1:
            raise CapabilityError("Mixed inputs are read token by token: no drafts.", "Decode plainly.")
        cache.stage(position)
        with cache.dense(tokens.shape[1]) as lent:
            before = self._entries(lent, torch.tensor(lent.lengths).unsqueeze(1) - 1)
        mean, entropy = before.split([before.shape[-1] - 1, 1], -1)
        read = self.target.embed(tokens)
        mixed = read + (mean - entropy * read) / (self.beta + 1)  # the formula, near the token for large beta
        read = torch.where(is_written.unsqueeze(-1), mixed, read)
        own = Layers(cache, slice(0, -1), cache.counter)
        scores = self.target.score(tokens, position, visible, own, ask, outputs, read, skip)
        if outputs.has_logits and scores.logits.shape[1]:
            self._note(scores.logits, cache, ask, tokens.shape[1])
        return scores

    def _entries(self, cache: Cache, slots: Tensor) -> Tensor:
        """Return what lies in slots [B, N] of each row, [B, N, hidden + 1]; a view of the last where N is 1."""
        held = cache.buffers[-1].flatten(1, cache.slot_axis)
        return held[torch.arange(len(held)).unsqueeze(1), slots.to(held.device).clamp(min=0)]

    def _note(self, logits: Tensor, cache: Cache, ask: Tensor | None, size: int) -> None:
        """Write what each asked place says of the next input to its slot."""
        law = as_logs(logits)
        probs = law.exp()
        entropy = -(probs * law.masked_fill(probs == 0, 0)).sum(-1, keepdim=True) / math.log(logits.shape[-1])
        mean = (probs.to(self._table.dtype) @ self._table) * entropy.to(self._table.dtype)
        said = torch.cat([mean, entropy.to(mean.dtype)], -1)
        places = torch.arange(size, device=logits.device).expand(len(law), -1) if ask is None else ask
        with cache.dense(size) as lent:
            held = lent.buffers[-1].flatten(1, lent.slot_axis)
            slots = torch.tensor(lent.lengths, device=held.device).unsqueeze(1) + places
            held[torch.arange(len(held), device=held.device).unsqueeze(1), slots] = said


@dataclass(frozen=True)
class MixtureOfInputs(Control):
    """Inputs between the token drawn and the law that it was drawn from."""

    name: ClassVar[str] = "moi"
    summary: ClassVar[str] = "each written token is read together with the law that it was drawn from"
    is_model: ClassVar[bool] = True

    beta: float = setting(1.0, least=0, note="inf = the token alone")

    def target(self, site: Site) -> Adapter:
        """Return the target with mixed inputs."""
        return site.target if math.isinf(self.beta) else MixedInputs(site.target, self.beta)
