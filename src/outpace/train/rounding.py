"""Make a trained model smaller: matrices as bytes with a scale per row, the tokenizer's file without blanks.

    python -m outpace.train.rounding runs/translate-fast

What is read back is what `outpace.models.rounded` says: numbers that differ by at most half of a row's scale. Measure
what that costs before such a model ships, and note its quality in the card again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from outpace.errors import ConfigError, ModelError
from outpace.failures import guarded
from outpace.models.rounded import SCALE, split

__all__ = ["round_model"]

_PLAIN, _ROUNDED = "stored in bfloat16", "stored as bytes with a scale per row, the rest in bfloat16"


def round_model(directory: Path) -> tuple[int, int]:
    """Round the matrices of a model that `outpace train` wrote, in place.

    Returns:
        Bytes of weights and tokenizer before and after.

    Raises:
        ModelError: there are no weights, or they cannot be read.
    """
    files = [directory / name for name in ("model.safetensors", "tokenizer.json")]
    try:
        weights = load_file(files[0])
        before = sum(file.stat().st_size for file in files)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{directory} holds no model ({error}).", "Give what `outpace train` wrote.") from error
    rounded = {
        name: tensor.contiguous() if tensor.dtype == torch.int8 or name.endswith(SCALE) else tensor.to(torch.bfloat16)
        for name, tensor in split(weights).items()
    }
    tokenizer = json.loads(files[1].read_text(encoding="utf-8"))
    compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    for file, content in zip(files, (save(rounded, metadata={"format": "pt"}), compact.encode()), strict=True):
        part = file.with_suffix(".part")
        part.write_bytes(content)
        part.replace(file)
    card = directory / "card.md"
    if card.is_file():
        card.write_text(card.read_text(encoding="utf-8").replace(_PLAIN, _ROUNDED), encoding="utf-8")
    return before, sum(file.stat().st_size for file in files)


def _round(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise ConfigError("One directory is needed.", "python -m outpace.train.rounding DIRECTORY")
    before, after = round_model(Path(arguments[0]))
    print(f"{arguments[0]}: {before:,} bytes of weights and tokenizer before, {after:,} after")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_round, sys.argv[1:]))
