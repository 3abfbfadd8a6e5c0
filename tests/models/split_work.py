"""What each process of a split model does in a test; it imports little, since every process does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.errors import OutpaceError
from outpace.models.loading import load_model
from outpace.models.parallel import Split
from outpace.models.transformer import Transformer

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3]
LAWS = ({"method": "prompt-lookup"}, {"method": "jacobi", "temperature": 0.8, "seed": 5, "num_samples": 2})


@dataclass
class Seen:
    """What a process saw: logits and texts by model, and how two mishaps end."""

    logits: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, list[list[int]]] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    wishes: list[bool] = field(default_factory=list)


def forward(model: Transformer, shift: int = 0) -> Tensor:
    """Logits of two rows of 24 tokens."""
    ids = (torch.arange(48).view(2, 24) * 7 + shift) % model.spec.vocab_size
    return model.score(ids, torch.arange(24).expand(2, -1), None, model.new_cache(2, 24)).logits


def texts(model: Transformer, is_plain: bool = False) -> list[list[int]]:
    """Tokens by each of `LAWS`; plainly decoded, or as drafted."""
    found = []
    for law in LAWS:
        arguments = {**law, "method": "autoregressive"} if is_plain else law
        results = LanguageModel(model).generate(PROMPT, max_tokens=8, ignore_eos=True, **arguments)
        found += [result.tokens for result in (results if isinstance(results, list) else [results])]
    return found


def work(split: Split, directories: list[Path]) -> Seen:
    """Load each model's share, run it, then go astray, then leave early."""
    torch.set_num_threads(1)
    seen, model = Seen(), None
    for directory in directories:
        model = load_model(directory, "float64", split=split)
        seen.logits[directory.name], seen.tokens[directory.name] = forward(model), texts(model)
        seen.num_bytes[directory.name] = model.weights.num_bytes
    assert model is not None
    seen.wishes = [split.agree(split.rank == 0), split.agree(split.rank == 1)]
    for step in ("astray", "early"):
        try:
            if step == "early" and split.rank:
                return seen
            forward(model, shift=split.rank)
        except OutpaceError as error:
            seen.told.append(str(error))
    return seen
