"""What can be known to be wrong before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outpace.methods.base import Method

__all__ = ["check_method"]


def check_method(
    model: str,
    name: str,
    options: Mapping[str, str],
    law: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    num_samples: int = 1,
) -> tuple[Method, int | None]:
    """Build a method from its options and see that it and its drafters fit a model, by the model's config alone.

    Args:
        model: as it is named.
        name: of the method; "" = how the model is decoded where nobody says.
        options: of the method, as they are written.
        law, card: as `outpace.load` and its `generate` take them.
        num_samples: texts from each prompt.

    Returns:
        The method and the model's vocabulary size (None = known only once the model is loaded, and with it what an
        unnamed method is: plain decoding stands for it).

    Raises:
        OutpaceError: an unknown method, option, setting or model, or a method that does not fit.
    """
    from outpace.methods.registry import load_method

    method = load_method(name).from_settings(options) if name else None  # a mistake there is told first
    from outpace.heads.files import is_head
    from outpace.heads.foreign.layouts import is_foreign
    from outpace.methods.misfit import check_fit, check_partner, check_search, usual_method
    from outpace.models.byte_model import ByteNames
    from outpace.models.loading import resolve
    from outpace.models.opening import offered_by
    from outpace.sampling import Sampling
    from outpace.zoo import drafter_of, method_of

    settings = Sampling(**(law or {}))
    if method is None:
        offered = offered_by(model, card)
        if offered is None:  # a network of its own: it is loaded, and tells
            return load_method("autoregressive")(), None
        usual = usual_method(method_of(model), offered, num_samples > 1 or not settings.is_greedy)
        method = load_method(usual).from_settings(options)
    check_search(method, settings, num_samples)
    offered = offered_by(model, card)
    if offered is None:  # a model that only transformers can load is checked when it is loaded
        return method, None
    check_fit(method, offered)
    for role in method.needs.models:
        other = str(getattr(method, role))
        if other == "auto" and (method.needs.head or role == "judge"):  # looked for when the model is loaded
            continue
        # A trained drafter is held to the target when both are loaded.
        has_files = other != "auto" and not ByteNames.is_one(other)
        if has_files and (is_head(place := resolve(other)) or is_foreign(place)):
            continue
        partner = offered_by(drafter_of(model) if other == "auto" else other)
        if partner is not None:
            wanted, is_same = method.needs.model_attention.get(role, ""), not method.needs.has_text
            check_partner(role, partner, offered, is_same_vocab=is_same, attention=wanted)
    return method, offered.vocab_size
