"""Write with the nearest chunks of a collection at hand: a cross-attention reads them above the model's last layer.

Paper: Wang et al. (2023), arXiv 2304.06762; Borgeaud et al. (2022), RETRO, arXiv 2112.04426.
Guarantee: approximate: another law than the model's; the model's own until a text has a whole chunk.
Cost: 1 target forward per token, a look at all chunks whenever one is whole, and an attention over the neighbours; the
    collection is read by the target when a run begins.
Differences: one cross-attention above the last layer of a model that stays as it is (RETRO-fitting), where the paper
    trains a decoder with one in every third layer; neighbours are found by mean embeddings of tokens, not by BERT, and
    begin at any token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.accept import sample_and_match
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.retrieve.chunks import ChunkIndex, ChunkReader, chunk_before
from outpace.retrieve.shelf import Shelf, file_marks, read_collection, shelved
from outpace.types import Context, Decision, Guarantee, Needs, Outputs, Proposal, Scores, View

__all__ = ["ChunkRetrieval"]


@dataclass
class Reading:
    """The collection, and per row the chunk that it reads by and what it reads; -1 and None = nothing yet."""

    shelf: Shelf[tuple[ChunkReader, ChunkIndex]]
    chunks: list[int]
    found: list[Tensor | None]


@dataclass(frozen=True)
class ChunkRetrieval(Method):
    """Retrieval by chunks.

    Attributes:
        reader: the trained file, from `python -m outpace.train.chunks`; "" = nothing is read: plain decoding.
        collection: a text, a folder of texts, or a .jsonl file with a text per line.

    Raises:
        ConfigError: a reader without a collection, or the other way round.
    """

    reader: str = ""
    collection: str = ""

    name: ClassVar[str] = "chunk-retrieval"
    family: ClassVar[str] = "copy"
    summary: ClassVar[str] = "Reads the nearest chunks of a collection above the model's last layer."
    paper: ClassVar[Paper] = Paper(
        "Shall We Pretrain Autoregressive Language Models with Retrieval? A Comprehensive Study",
        "Wang et al.",
        2023,
        "2304.06762",
        271,
        "Pre-training with retrieval, cross-attention in several layers, and RETRO++'s passages in the prompt.",
        'outpace generate "Once upon a time" --method chunk-retrieval -o reader=FILE -o collection=FILE',
    )

    def __post_init__(self) -> None:
        """See that there are both or neither."""
        super().__post_init__()
        if bool(self.reader) != bool(self.collection):
            raise ConfigError("A reader and a collection go together.", "Give -o reader=FILE and -o collection=FILE.")

    @property
    def needs(self) -> Needs:
        """The last hidden state, where there is anything to read."""
        return Needs(outputs=Outputs(has_last=True)) if self.reader else Needs()

    @property
    def guarantee(self) -> Guarantee:
        """Another law than the model's, unless nothing is read."""
        return Guarantee.APPROXIMATE if self.reader else Guarantee.EXACT

    def start(self, context: Context) -> Reading:
        """Read the collection, once for each target.

        Raises:
            ConfigError: a file that cannot be read, an empty collection, or a model without a tokenizer.
        """
        rows = len(context.texts)
        shelf: Shelf[tuple[ChunkReader, ChunkIndex]] = Shelf(None)
        if self.reader:

            def make() -> tuple[ChunkReader, ChunkIndex]:
                reader = ChunkReader.read(self.reader)
                texts = read_collection(self.collection, context.tokenizers.get("target"))
                return reader, ChunkIndex(context.target, texts, reader.chunk)

            shelf = shelved(context.target, ("chunks", file_marks(self.reader, self.collection)), make)
        return Reading(shelf, [-1] * rows, [None] * rows)

    def propose(self, view: View, state: Reading) -> Proposal:
        """Find the neighbours of chunks that have become whole."""
        if state.shelf.held is not None:
            reader, index = state.shelf.held
            for row, text in enumerate(view.texts):
                number = chunk_before(len(text) - 1, reader.chunk)
                if number >= 0 and number != state.chunks[row]:
                    key = index.key(text[number * reader.chunk : (number + 1) * reader.chunk])
                    state.found[row] = index.entries(index.nearest(key.unsqueeze(0), reader.neighbours))
                    state.chunks[row] = number
        return nothing(view)

    @torch.no_grad()
    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Reading) -> Decision:
        """Let rows read what was found, and draw from the model's output matrix as always."""
        if state.shelf.held is None or scores.last is None:
            return sample_and_match(proposal, scores, view)
        (reader, index), logits = state.shelf.held, scores.logits.clone()
        for row, found in enumerate(state.found):
            if found is not None:
                place = len(view.texts[row]) % reader.chunk
                states = reader(scores.last[row : row + 1, :1].float().cpu(), found, place).to(scores.last)
                logits[row, 0] = index.target.head(states)[0, 0]
        return sample_and_match(proposal, replace(scores, logits=logits), view)
