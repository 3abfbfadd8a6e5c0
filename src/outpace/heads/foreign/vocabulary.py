"""Which tokens a foreign drafter drafts: offsets in most files, ids in GGUF and in vLLM's token maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.heads.foreign.source import Source

__all__ = ["Drafted", "offsets_of", "read_drafted"]


@dataclass(frozen=True, slots=True)
class Drafted:
    """Tokens that can be drafted.

    Attributes:
        ids: [K] int64, ascending; None = all.
        order: [K] where in the file's order each of them stands; None = as in the file.
        size: K, 0 = all.
    """

    ids: Tensor | None = None
    order: Tensor | None = None

    @property
    def size(self) -> int:
        """How many; 0 = all."""
        return 0 if self.ids is None else len(self.ids)

    def rows(self, table: Tensor) -> Tensor:
        """Return a table [K, ...] with its rows in ascending order of tokens."""
        return table if self.order is None else table[self.order]


def read_drafted(source: Source, vocab: int) -> Drafted:
    """Return the tokens that a drafter drafts.

    Args:
        source: the drafter; `d2t` (offsets: token = i + d2t[i]; ids in GGUF), `token_map` (ids) or `t2d` (flags) tell.
        vocab: the target's vocabulary.

    Raises:
        ModelError: a token beyond the vocabulary, or one named twice.
    """
    offsets, table, flags = (source.find(name, f"model.{name}") for name in ("d2t", "token_map", "t2d"))
    if offsets is not None:
        ids = offsets.flatten().long()
        ids = ids if source.architecture else ids + torch.arange(len(ids))
    elif table is not None:
        ids = table.flatten().long()
    elif flags is not None:
        ids = flags.flatten().nonzero()[:, 0]
    else:
        return Drafted()
    if not len(ids) or not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        worst = "none" if not len(ids) else str(int(ids.max() if ids.max() >= vocab else ids.min()))
        raise ModelError(
            f"The drafter {source.path} drafts token {worst}, but the target has {vocab} tokens.",
            "It is of a target with another vocabulary, or its d2t is damaged.",
        )
    ids, order = ids.sort(stable=True)
    if bool((ids.diff() == 0).any()):
        raise ModelError(f"The drafter {source.path} names a drafted token twice.", "Its d2t is damaged.")
    if len(ids) == vocab and bool((order == torch.arange(vocab)).all()):
        return Drafted()
    return Drafted(ids, None if bool((order.diff() > 0).all()) else order)


def offsets_of(ids: Tensor, vocab: int) -> dict[str, Tensor]:
    """Return `d2t` [K] int64 and `t2d` [vocab] bool as most files have them."""
    flags = torch.zeros(vocab, dtype=torch.bool)
    flags[ids] = True
    return {"d2t": ids.long() - torch.arange(len(ids)), "t2d": flags}
