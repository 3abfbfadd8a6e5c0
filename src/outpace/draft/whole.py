"""Whole texts and models that write token by token: as drafts for one, and as candidates that one scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from outpace.draft.source import originals
from outpace.errors import CapabilityError
from outpace.models.one_pass import whole_laws
from outpace.types import Context

__all__ = ["spelled", "text_scores", "whole_texts"]


def whole_texts(context: Context, role: str = "draft") -> list[list[int]]:
    """Return, per joining row, the whole text that a one-pass model writes of its source, end token included.

    The network runs once for all rows, which is counted as one draft forward; nothing of the target's text is read, so
    a caller aligns the two itself, by place or by what stands around a place.

    Args:
        context: of the joining rows, with their sources.
        role: of the one-pass model.

    Raises:
        CapabilityError: the model writes token by token.
    """
    model = context.models[role]
    if not model.capabilities.is_one_pass:
        raise CapabilityError(
            f"The {role} model writes token by token, not in one pass.",
            "Name a one-pass model, or use draft-model.",
        )
    context, ours = spelled(context, role)
    cache = context.cache_for(role)
    cache.counter.add(sum(map(len, context.sources)), 1)
    return [ours(law.argmax(-1).tolist()) for law in whole_laws(cache)]


def spelled(context: Context, role: str) -> tuple[Context, Callable[[list[int]], list[int]]]:
    """Return the context with sources as a model reads them, and what turns its texts into the target's tokens.

    Both change nothing but for a model whose tokenizer is given by its role (`Needs.has_text`).
    """
    theirs = context.tokenizers.get(role)
    if theirs is None:
        return context, list
    ours = context.tokenizers["target"]
    sources = [theirs.encode(ours.decode(source)) or [0] for source in originals(context)]
    return replace(context, sources=sources), lambda text: ours.encode(theirs.decode(text))


def text_scores(context: Context, role: str, texts: Sequence[list[int]], length_penalty: float = 0.0) -> Tensor:
    """Return another model's score of each text, [B * K] float64, by one forward over all of them.

    Args:
        context: of the joining rows, B of them.
        role: of the model, which writes token by token.
        texts: K of each row, one row's after another's, ends included.
        length_penalty: the log-probability is divided by the length to this power.

    A model whose tokenizer is given by its role reads sources and texts as text, in tokens of its own.
    """
    model, theirs = context.models[role], context.tokenizers.get(role)
    if theirs is not None:
        ours = context.tokenizers["target"]
        context, _ = spelled(context, role)
        texts = [theirs.encode(ours.decode(text)) for text in texts]
    texts = [text or [0] for text in texts]  # as good as anything for a text without a token
    lengths = torch.tensor([len(text) for text in texts], device=model.device)
    context = replace(context, capacity=max(context.capacity, int(lengths.max()) + 1))
    every = [row for row in range(len(context.sources)) for _ in range(len(texts) // len(context.sources))]
    cache = context.cache_for(role).rows(every)
    tokens = pad_sequence([torch.tensor(text, device=model.device) for text in texts], batch_first=True)
    inputs = torch.cat([torch.full_like(tokens[:, :1], model.start_token or 0), tokens[:, :-1]], 1)
    at = torch.arange(tokens.shape[1], device=model.device)
    position = at.expand_as(tokens).masked_fill(at >= lengths[:, None], -1)
    laws = model.score(inputs, position, None, cache).logits.double().log_softmax(-1)
    said = laws.gather(2, tokens[:, :, None])[:, :, 0].masked_fill(position < 0, 0.0)
    return said.sum(1).cpu() / lengths.cpu().double() ** length_penalty
