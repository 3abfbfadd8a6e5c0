"""What an engine reads without writing: a prompt's log-probabilities, and the vectors of texts. Chunk by chunk."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from outpace.engine.entry import Scored
from outpace.errors import CapabilityError, ConfigError
from outpace.run.prefill import catch_up
from outpace.sampling.truncation import likeliest_of
from outpace.types import Adapter, Outputs

__all__ = ["check_embedding", "embed_texts", "read_prompt"]

POOLINGS = ("mean", "last")
_TOGETHER = 2048  # tokens of texts that are embedded side by side, padding included
_FEW = 16  # tokens that logits are computed of where nobody wants any
_LAST = Outputs(has_last=True)


def read_prompt(target: Adapter, ids: list[int], num_top: int, chunk: int) -> Generator[None, None, Scored]:
    """Return per token its log-probability after those before it (None for the first), and the likeliest in its place.

    Yields between two forwards. `target` is a causal model, `chunk` how many tokens a forward takes.
    """
    found: Scored = [(None, [])]
    cache = target.new_cache(1, len(ids) + chunk)
    for (places,), scores in catch_up(target, cache, [ids], chunk, has_logits=True):
        for at, logits in zip(places, scores.logits[0], strict=True):
            after, law = ids[at + 1], logits.double().log_softmax(-1)
            found.append((float(law[after]), likeliest_of(logits, num_top) if num_top else []))
        yield
    return found


def check_embedding(target: Adapter, texts: Sequence[Sequence[int]], pooling: str) -> None:
    """Refuse what cannot be embedded.

    Raises:
        ConfigError: a text that is empty or too long, an id outside the vocabulary, or a pooling that there is not.
        CapabilityError: the model gives no hidden states, or they speak of another text than the one that it reads.
    """
    offered = target.capabilities
    if pooling not in POOLINGS:
        raise ConfigError(f"pooling is {pooling!r}.", f"Poolings: {', '.join(POOLINGS)}.")
    if not offered.has_hidden or offered.is_encoder_decoder:
        raise CapabilityError(
            "This model does not give the hidden states of a text.", "Use a decoder that outpace loads natively."
        )
    for ids in texts:
        if not ids:
            raise ConfigError("A text is empty.", "Give at least one character.")
        if not (min(ids) >= 0 and max(ids) < offered.vocab_size):
            raise ConfigError(
                "A text holds a token outside the vocabulary.", f"Ids go from 0 to {offered.vocab_size - 1}."
            )
        if len(ids) > offered.max_positions:
            raise ConfigError(
                f"A text has {len(ids)} tokens, but the model's context is {offered.max_positions}.", "Shorten it."
            )


def embed_texts(
    target: Adapter, texts: Sequence[Sequence[int]], pooling: str, chunk: int
) -> Generator[None, None, list[list[float]]]:
    """Return a vector of length 1 per text: the mean of its last hidden states, or the last of them.

    Yields between two forwards; texts of like lengths are read side by side.
    """
    vectors: dict[int, Tensor] = {}
    target = target.trim_head(torch.arange(_FEW)) or target  # nobody wants their logits
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    while order:
        longest, batch = len(texts[order[-1]]), [order.pop()]
        while order and longest * (len(batch) + 1) <= _TOGETHER:
            batch.append(order.pop())
        states = yield from _states(target, [list(texts[at]) for at in batch], pooling, chunk)
        vectors.update(zip(batch, states, strict=True))
    return [(vectors[at] / vectors[at].norm().clamp(min=1e-12)).tolist() for at in range(len(texts))]


def _states(target: Adapter, texts: list[list[int]], pooling: str, chunk: int) -> Generator[None, None, list[Tensor]]:
    if target.capabilities.attention != "causal":  # every token sees those behind it: one forward each
        found = []
        for ids in texts:
            tokens, position = torch.tensor([ids]), torch.arange(len(ids)).unsqueeze(0)
            device = (cache := target.new_cache(1, len(ids))).device
            last = target.score(tokens.to(device), position.to(device), None, cache, outputs=_LAST).last
            assert last is not None  # it was asked for
            found.append(last[0].double().mean(0) if pooling == "mean" else last[0, -1].double())
            yield
        return found
    cache = target.new_cache(len(texts), max(map(len, texts)) + chunk)
    sums: list[Tensor | None] = [None] * len(texts)
    behind = [[*ids, ids[-1]] for ids in texts]  # all but the last token of each are read
    for places, scores in catch_up(target, cache, behind, chunk, outputs=_LAST):
        assert scores.last is not None  # it was asked for
        for row, held in enumerate(places):
            if not len(held):
                continue
            states = scores.last[row, : len(held)].double()
            before = sums[row]
            sums[row] = states[-1] if pooling == "last" else states.sum(0) if before is None else before + states.sum(0)
        yield
    total = [one for one in sums if one is not None]
    return [one / len(ids) for one, ids in zip(total, texts, strict=True)]
