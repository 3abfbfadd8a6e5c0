"""Search the texts of a Markov transformer in parallel: coarse models prune, finer ones choose.

Paper: Deng and Rush (2020), arXiv 2006.01112, algorithm 1.
Guarantee: approximate: the best text of order `order` among those that the pruning leaves, not of one pass.
Cost: the model's own pass, and `order` + 1 passes of the decoder, the last ones over `top` contexts a place; scans of
    max-plus products between them, in steps that grow with the logarithm of the length.
Differences: the length is predicted by a law of its own, not by a line through the source's; texts up to `slack` tokens
    longer or shorter compete by the probabilities of their ends. Noise is not used: the text is the likeliest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.cascade import Bounds, cascade
from outpace.models.nar.markov import Markov
from outpace.models.nar.model import NarModel, outputs_of
from outpace.models.one_pass import end_law
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import Context

__all__ = ["Cascade"]


@dataclass(frozen=True)
class Cascade(WholeMethod):
    """Cascaded decoding.

    Attributes:
        top: runs of tokens kept at each place.
        order: tokens that a token depends on, at most the model's; 0 = as many as it was trained for.
        slack: texts are at most so many tokens longer or shorter than predicted.
    """

    top: int = setting(16, least=1)
    order: int = setting(0, least=0)
    slack: int = setting(3, least=0)

    name: ClassVar[str] = "cascade"
    draws: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ("markov",)
    summary: ClassVar[str] = "Finds a Markov model's likeliest text in parallel: coarse laws prune, finer ones choose."
    paper: ClassVar[Paper] = Paper(
        "Cascaded Text Generation with Markov Transformers",
        "Deng and Rush",
        2020,
        "2006.01112",
        31,
        "Several devices; its sizes.",
        'outpace generate "A man rides a bike." --model runs/nar-markov --method cascade',
    )

    @torch.no_grad()
    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Search; see `WholeMethod.choose`.

        Raises:
            ConfigError: the model looks back less far.
        """
        net, order = cast("Markov", model.net), self.order or model.net.config.order
        if order > net.config.order:
            raise ConfigError(f"The model looks back {net.config.order} tokens, not {order}.", "Ask for a lower order.")
        assert context.cache is not None
        counter, outputs = context.cache.counter, outputs_of(context.cache)[1]
        run = net.resumed(outputs)

        def score(contexts: Tensor, at: Tensor) -> Tensor:
            counter.add(contexts.shape[0] * contexts.shape[1] * (contexts.shape[2] + 1), 1)
            return net.given(run, contexts, at)

        likely = net.lengths.best(outputs[1], run.is_real)[:, 0]
        most = (likely + self.slack).clamp(max=net.config.max_positions - 1)
        at = torch.arange(int(most.max()) + 1, device=model.device).expand(len(likely), -1)
        bounds = Bounds((likely - self.slack).clamp(min=1), most, net.config.start_token, model.end)
        found = cascade(score(at[:, :, None][:, :, :0], at), score, bounds, self.top, order)
        vocab = model.capabilities.vocab_size
        return [
            torch.cat([end_law(vocab, token, model.dtype) for token in row[: row.index(model.end) + 1]])
            for row in found.tokens.tolist()
        ]
