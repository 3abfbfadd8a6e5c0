"""Does a method fit a model? Asked before weights load."""

from __future__ import annotations

from outpace.errors import CapabilityError, ConfigError
from outpace.methods.base import Method
from outpace.methods.registry import load_method, method_names
from outpace.sampling import Sampling
from outpace.types import Capabilities

__all__ = ["check_fit", "check_partner", "check_search", "misfits", "usual_method"]

# What canvas methods write on; places in any order need methods of their own.
_CANVASES = ("full", "block", "causal-block")


def misfits(method: Method, offered: Capabilities) -> list[str]:
    """Return what the method needs and the model lacks, each as a phrase; empty = it fits."""
    needs, lacks = method.fitted(offered)[0].needs, []
    if needs.attention != offered.attention and not (needs.attention == "canvas" and offered.attention in _CANVASES):
        wanted = "full or block" if needs.attention == "canvas" else needs.attention
        lacks.append(f"{wanted} attention (the model's is {offered.attention})")
    if needs.has_mask and offered.mask_id is None:
        lacks.append("a mask token")
    if needs.is_one_pass and not offered.is_one_pass:
        lacks.append("a model that gives its whole text in one pass")
    if needs.kinds and offered.kind not in needs.kinds:
        lacks.append(f"a one-pass network of the kind {' or '.join(needs.kinds)}")
    if needs.has_skip and not offered.has_skip:
        lacks.append("layers that can be skipped")
    if needs.has_tree and not offered.has_tree:
        lacks.append("tree attention")
    if needs.has_rollback and not offered.has_rollback:
        lacks.append("a cache that can roll back")
    if (needs.outputs.layers or needs.outputs.has_last) and not offered.has_hidden:
        lacks.append("hidden states")
    if any(not 0 <= layer <= offered.num_layers for layer in needs.outputs.layers):
        lacks.append(f"layers up to {max(needs.outputs.layers)} (the model has {offered.num_layers})")
    lacks += [f"an output {name!r}" for name in needs.outputs.heads if name not in offered.heads]
    return lacks


def usual_method(named: str, offered: Capabilities, is_drawn: bool = False) -> str:
    """Return the name of the method that writes where nobody names one.

    Args:
        named: what the model's card names, or "". It is passed over where nobody knows it, where it does not fit the
            model or needs another one, and where it cannot draw but something is to be drawn.
        offered: what the model can do.
        is_drawn: a temperature, or several samples, are asked for.
    """
    if named not in method_names():
        return offered.plain_method
    method = load_method(named)()
    is_apt = not misfits(method, offered) and method.fitted(offered)[0].needs.width <= offered.max_positions
    is_alone = not method.needs.models and not method.needs.head
    return named if is_apt and is_alone and (method.draws or not is_drawn) else offered.plain_method


def check_fit(method: Method, offered: Capabilities) -> None:
    """Raise if the method cannot run on such a model.

    Raises:
        CapabilityError: names what is missing and which methods would fit, or the drafts are longer than the context.
    """
    width = method.fitted(offered)[0].needs.width
    if width > offered.max_positions:
        raise CapabilityError(
            f"The method {method.name!r} would draft {width} tokens at once, but the model's context is "
            f"{offered.max_positions}.",
            "Draft fewer nodes, or a shorter chain.",
        )
    lacks = misfits(method, offered)
    if lacks:
        fitting = [name for name in method_names() if not misfits(load_method(name)(), offered)]
        raise CapabilityError(
            f"The method {method.name!r} needs {' and '.join(lacks)}.",
            f"Methods that fit this model: {', '.join(fitting)}." if fitting else "No method here fits this model.",
        )


def check_search(method: Method, settings: Sampling, num_samples: int = 1) -> None:
    """Raise if a search is asked for what only drawn texts have.

    Raises:
        ConfigError: a temperature, or several samples.
    """
    if not method.draws and not settings.is_greedy:
        raise ConfigError(
            f"The method {method.name!r} takes the likeliest texts, but temperature is {settings.temperature:g}.",
            "Leave temperature out, or draw with another method.",
        )
    if method.num_rows > 1 and num_samples > 1:
        raise ConfigError(
            f"The method {method.name!r} searches once per prompt, but num_samples is {num_samples}.",
            f"Ask for its best texts: -o n_best={num_samples}.",
        )


def check_partner(
    role: str, other: Capabilities, target: Capabilities, *, is_same_vocab: bool = True, attention: str = ""
) -> None:
    """Raise if another model cannot work beside the target.

    Args:
        role: what the other model is for.
        other, target: their capabilities.
        is_same_vocab: False where the method translates between vocabularies.
        attention: what the other model's has to be; "" = the target's, "canvas" = full or block.

    Raises:
        CapabilityError: it has another vocabulary or another kind of attention.
    """
    hint = "Name a model of the same vocabulary and kind, or use prompt-lookup, jacobi or layer-skip."
    if other.is_encoder_decoder and not target.is_encoder_decoder:
        raise CapabilityError(f"The {role} model is an encoder-decoder, but the target is not.", hint)
    if is_same_vocab and other.vocab_size != target.vocab_size:
        raise CapabilityError(
            f"The {role} model has {other.vocab_size} tokens, the target {target.vocab_size}.",
            "Use cross-vocab, which takes a drafter of any vocabulary, or prompt-lookup, jacobi or layer-skip.",
        )
    fits = ("full", "block") if attention == "canvas" else (attention,)  # who sees whom is said to targets alone
    if attention and other.attention not in fits:
        wanted = "full or block" if attention == "canvas" else attention
        raise CapabilityError(
            f"The {role} model has {other.attention} attention; this method needs {wanted} attention there.",
            f"Name another model with -o {role}=MODEL.",
        )
    if not attention and other.attention != target.attention:
        raise CapabilityError(
            f"The {role} model has {other.attention} attention, the target {target.attention} attention.", hint
        )
