"""A request's laws, made for a model: each is read and checked once per request, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outpace.api.request import Request
from outpace.errors import ConfigError
from outpace.laws.base import Control, Site
from outpace.laws.registry import read_law
from outpace.sampling import Sampling
from outpace.sampling.guide import Walks

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.run.row import Row

__all__ = ["check_laws", "governed", "impose", "read_laws"]


def read_laws(request: Request) -> list[Control]:
    """Return the laws that a request names or brings.

    Raises:
        ConfigError: no such law, or a setting of it that cannot be.
    """
    return [law if isinstance(law, Control) else read_law(law) for law in request.law]


def impose(lm: LanguageModel, settings: Sampling, laws: Sequence[Control]) -> Sampling:
    """Return the settings with what the laws do to logits.

    Raises:
        ConfigError: a law does not go with the model or with other settings.
    """
    if not laws:
        return settings
    if lm.target.capabilities.is_canvas:
        raise ConfigError("A law speaks of the next token, and this model writes in any order.", "Use a causal model.")
    site = _site(lm)
    for law in laws:
        law.check_beside(settings, site)
    guides = [guide for law in laws if (guide := law.guide(site)) is not None]
    return replace(settings, laws=(*settings.laws, *map(Walks, guides)))


def governed(lm: LanguageModel, law: Any) -> LanguageModel:
    """Return a model whose target is what the laws put in its place; the model itself where none does.

    Args:
        lm: the model.
        law: as a caller gives it (`Request.law`); what cannot be read is told later.

    Raises:
        ConfigError, CapabilityError: a law does not go with the model.
    """
    given = law if isinstance(law, list | tuple) else [] if law is None else [law]
    for one in [read_law(one) if isinstance(one, str) else one for one in given]:
        if isinstance(one, Control) and one.is_model and not lm.target.capabilities.is_canvas:
            site, other = _site(lm), lm.ending_with(lm.end_tokens)
            other.target, other.tokenizer, other.method, lm = one.target(site), one.tokenizer(site), "", other
    return lm


def _site(lm: LanguageModel) -> Site:
    return Site(lm.target, lm.tokenizer, lm.name, lm.directory, lm.partners.named)


def check_laws(lm: LanguageModel, settings: Sampling, rows: Sequence[Row]) -> None:
    """Refuse texts that cannot be what the laws ask for, by their length or their prompt's alone.

    Raises:
        ConfigError: one is too short for it.
    """
    lm.target.check_prompts([row.num_prompt for row in rows])
    for law in settings.laws:
        for row in rows:
            law.at(row.tokens, row.num_prompt, row.end_tokens, row.num_prompt + row.max_tokens)
