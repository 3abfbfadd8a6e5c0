"""From a `config.json` to its family and its `Spec`: the body from the family, the way it is decoded from the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outpace.errors import ModelError
from outpace.models.card import kind_of, read_card
from outpace.models.config_values import checked_config
from outpace.models.diffusion_families import DIFFUSION
from outpace.models.families import CAUSAL, Family
from outpace.models.seq2seq.families import PAIRS, is_pair
from outpace.models.spec import Spec

__all__ = ["FAMILIES", "find_family", "is_native", "make_spec"]

Config = Mapping[str, Any]

FAMILIES: dict[str, Family] = CAUSAL | DIFFUSION | {"outpace_codebook_llama": CAUSAL["llama"]}


def is_native(config: Config) -> bool:
    """Return whether a family here is named by this config.json."""
    return kind_of(config) in FAMILIES or is_pair(config)


def find_family(config: Config) -> Family:
    """Return the family that a `config.json` names, or say which other door is open."""
    name = kind_of(config)
    if is_pair(config):
        raise ModelError(f"{name} is an encoder-decoder.", "This takes a model that is a decoder alone.")
    if name not in FAMILIES:
        called = name or ", ".join(config.get("architectures") or ()) or "unnamed"
        raise ModelError(
            f"Architecture {called!r} has no native loader.",
            hint="Load it with the transformers adapter (`hf:NAME`); native: " + ", ".join([*FAMILIES, *PAIRS]) + ".",
        )
    return FAMILIES[name]


def make_spec(config: Config, context: int = 0, card: Config | None = None) -> Spec:
    """Return the shape that a `config.json` describes.

    Args:
        config: the parsed file.
        context: the longest text of the run, 0 = the model's own context. Only dynamic and long rotary scalings
            and rotary models in general can go beyond it.
        card: fields of the capability card that the user knows better; see `outpace.models.card.read_card`.
    """
    config = checked_config(config)
    family = find_family(config)
    try:
        fields = family.fields(config[family.text_key] if family.text_key else config, context)
    except KeyError as missing:
        raise ModelError(f"config.json lacks {missing.args[0]!r}.", hint="Fetch the model's files again.") from None
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ModelError(
            f"config.json describes no {kind_of(config)} model: {error}.", hint="Fetch the model's files again."
        ) from error
    known = read_card(config, card)
    if family.attentions and known.attention not in family.attentions:
        reason = f"{kind_of(config)} with {known.attention} attention attends in a way that nobody computes here."
        raise ModelError(reason, f"Known here: {' or '.join(family.attentions)}.")
    return Spec(**(fields | known.shape()))
