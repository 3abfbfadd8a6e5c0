"""Toy tokenizers, and a toy drafter of another vocabulary, for methods that work on text."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models

from outpace.methods.base import Method
from outpace.testing.toy import ToyModel
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter

__all__ = ["DRAFT_SPELLINGS", "plain_spellings", "respelled", "toy_tokenizer", "toy_tokenizers"]


def plain_spellings(size: int) -> tuple[str, ...]:
    """Return how the tokens of a toy model are spelled: "aA", "bB" and so on, as `world.toy_decode` writes them."""
    return tuple(chr(97 + i) + chr(65 + i) for i in range(size))


DRAFT_SPELLINGS = (*reversed(plain_spellings(10)), "k", "K", "l", "L", "m", "M", "aAbB")


@functools.lru_cache(maxsize=8)
def toy_tokenizer(spellings: tuple[str, ...]) -> Tokenizer:
    """Return a tokenizer that writes a text with as few of these tokens as it can."""
    # The library wants a token for what cannot be spelled. The last one is it, and nothing calls for it.
    engine = Engine(models.Unigram([(spelling, -1.0) for spelling in spellings], unk_id=len(spellings) - 1))
    engine.decoder = decoders.Fuse()
    return Tokenizer(engine)


def toy_tokenizers(method: Method, target: Adapter, others: Mapping[str, Adapter]) -> dict[str, Tokenizer]:
    """Return the tokenizers that a method which works on text gets, by role; a `respelled` drafter has its own."""
    if not method.needs.has_text:
        return {}
    sizes = {role: model.capabilities.vocab_size for role, model in {"target": target, **others}.items()}
    return {
        role: toy_tokenizer(DRAFT_SPELLINGS if size == len(DRAFT_SPELLINGS) else plain_spellings(size))
        for role, size in sizes.items()
    }


@functools.lru_cache(maxsize=8)
def respelled(model: ToyModel, spellings: tuple[str, ...] = DRAFT_SPELLINGS) -> ToyModel:
    """Return a model of another vocabulary that says what a model says, where both spell alike.

    Tokens that begin one of the model's own stand for it; anything else is random.

    Args:
        model: the model.
        spellings: the new vocabulary.
    """
    own = plain_spellings(model.capabilities.vocab_size)
    layers = model.capabilities.num_layers
    other = ToyModel(len(spellings), layers, hidden=model.hidden, sharpness=model.sharpness, seed=5)
    embed, head = other.weights[0].clone(), other.weights[3].clone()
    for index, spelling in enumerate(spellings):
        source = next((at for at, old in enumerate(own) if old.startswith(spelling)), None)
        if source is not None:
            embed[index], head[:, index] = model.weights[0][source], model.weights[3][:, source]
    other.weights = [embed, *model.weights[1:3], head]
    return other
