"""Which trained drafters go with a target: told by its sizes and its vocabulary, whatever file it was loaded from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from outpace import store, zoo
from outpace.heads.files import is_head, read_config
from outpace.heads.net import HeadConfig
from outpace.text.fingerprint import fingerprint
from outpace.types import Adapter

__all__ = ["known_heads"]


def known_heads(target: Adapter, tokenizer: Any, folders: Sequence[Path] | None = None) -> list[Path]:
    """Return the directories of the drafters that were trained for such a target, the best one first.

    A copy of a model in another format, or a tuning of it that kept its vocabulary, finds the drafters of the original:
    what they draft is checked, so that one that fits badly costs time alone.

    Args:
        target: the model.
        tokenizer: the target's; without one nothing is known.
        folders: where drafters lie, a directory each, those of earlier folders before others; None = those trained on
            this machine, then those that ship.
    """
    if tokenizer is None or not target.capabilities.has_hidden:
        return []
    folders = [store.cache_folder() / "drafters", zoo.home()] if folders is None else folders
    digest = partial(fingerprint, tokenizer)
    found = []
    for rank, folder in enumerate(folders):
        for directory in _heads(folder):
            config = read_config(directory)
            if _fits(config, target) and config.vocabulary == digest():
                found.append((rank, -config.accepted, directory))
    return [directory for _, _, directory in sorted(found)]


def _heads(folder: Path) -> Iterator[Path]:
    yield from (config.parent for config in sorted(folder.glob("*/config.json")) if is_head(config.parent))


def _fits(config: HeadConfig, target: Adapter) -> bool:
    offered = target.capabilities
    if (config.vocab_size, config.num_layers) != (offered.vocab_size, offered.num_layers) or not config.vocabulary:
        return False
    return config.hidden_size == target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)).shape[-1]
