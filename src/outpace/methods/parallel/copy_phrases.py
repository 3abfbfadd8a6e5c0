"""Write by choosing: at every step a token, or a whole phrase of a collection, whichever fits the prefix best.

Paper: Lan et al. (2023), arXiv 2307.06962 (CoG).
Guarantee: approximate: another law than the model's, over tokens and phrases; copied spans stand in the collection.
Cost: 1 target forward per step, over all tokens of the last phrase, and the product of one state with the collection's
    (about 200 numbers per token of it); the collection is read once by the target when a run begins.
Differences: the target itself reads prefixes and collection, and keeps its own logits of tokens; phrases are known by
    the state before them and the one at their end. Penalties, biases and constraints speak of tokens: with any of them
    nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.accept import sample_and_match
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper
from outpace.retrieve.phrases import PhraseIndex, PhraseMaps
from outpace.retrieve.shelf import Shelf, file_marks, read_collection, shelved
from outpace.retrieve.states import text_states
from outpace.sampling import Sampler
from outpace.types import Context, Decision, Guarantee, Needs, Outputs, Proposal, Scores, View

__all__ = ["CopyPhrases"]


@dataclass(frozen=True)
class CopyPhrases(Method):
    """Copy phrases of a collection.

    Attributes:
        maps: the trained file, from `python -m outpace.train.phrases`; "" = nothing is copied: plain decoding.
        collection: a text, a folder of texts, or a .jsonl file with a text per line.

    Raises:
        ConfigError: maps without a collection, or the other way round.
    """

    maps: str = ""
    collection: str = ""

    name: ClassVar[str] = "copy-phrases"
    family: ClassVar[str] = "copy"
    summary: ClassVar[str] = "Writes a token or a whole phrase of a collection per step, whichever fits best."
    paper: ClassVar[Paper] = Paper(
        "Copy Is All You Need",
        "Lan et al.",
        2023,
        "2307.06962",
        107,
        "A separate encoder of the collection, and prefilling of documents near the prefix.",
        'outpace generate "Once upon a time" --method copy-phrases -o maps=FILE -o collection=FILE',
    )

    def __post_init__(self) -> None:
        """See that there are both or neither."""
        super().__post_init__()
        if bool(self.maps) != bool(self.collection):
            raise ConfigError("Maps and a collection go together.", "Give -o maps=FILE and -o collection=FILE.")

    @property
    def needs(self) -> Needs:
        """The last hidden state, where there is anything to copy."""
        return Needs(outputs=Outputs(has_last=True)) if self.maps else Needs()

    @property
    def guarantee(self) -> Guarantee:
        """Another law than the model's, unless nothing is copied."""
        return Guarantee.APPROXIMATE if self.maps else Guarantee.EXACT

    def start(self, context: Context) -> Shelf[PhraseIndex]:
        """Read the collection, once for each target.

        Raises:
            ConfigError: a file that cannot be read, an empty collection, or a model without a tokenizer.
        """
        if not self.maps:
            return Shelf(None)

        def make() -> PhraseIndex:
            texts = read_collection(self.collection, context.tokenizers.get("target"))
            return PhraseIndex(PhraseMaps.read(self.maps), texts, text_states(context.target, texts))

        return shelved(context.target, ("phrases", file_marks(self.maps, self.collection)), make)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Shelf[PhraseIndex]) -> Decision:
        """Draw a token or a phrase for every row."""
        index, sampler = state.held, view.sampler
        if index is None or scores.last is None or sampler.settings.names_tokens:
            return sample_and_match(proposal, scores, view)
        size = scores.logits.shape[-1]
        rows = [(list(range(len(view.texts))), sampler)] if not sampler.parts else sampler.parts
        written: list[list[int]] = [[] for _ in view.texts]
        for chosen, own in rows:
            logits = scores.logits[chosen, 0].double()
            phrases = index.logits(scores.last[chosen, 0].cpu()).flatten(1).to(logits)
            both = logits if own.settings.names_tokens else torch.cat([logits, phrases], -1)
            drawn = _pick(own, both, [len(view.texts[row]) for row in chosen])
            for row, at in zip(chosen, drawn, strict=True):
                written[row] = [at] if at < size else index.phrase(at - size)
        return _decided(written, view)


def _pick(sampler: Sampler, logits: Tensor, lengths: list[int]) -> list[int]:
    drawn: list[int] = sampler.pick(logits, torch.tensor(lengths, device=logits.device)).tolist()
    return drawn


def _decided(written: list[list[int]], view: View) -> Decision:
    """Return the decision to write some tokens per row."""
    width = max(map(len, written))
    table = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in written], device=view.device)
    num = torch.tensor([len(tokens) for tokens in written], device=view.device)
    return Decision(table, num, torch.full_like(table, -1))
