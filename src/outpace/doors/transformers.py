"""transformers' own `generate`, decoded by our methods: any of its models, its arguments, its output.

    from outpace.doors.transformers import generate
    model.generate(**inputs, max_new_tokens=64, custom_generate=generate)
    model.generate(**inputs, custom_generate=generate, method="prompt-lookup", options={"draft_len": 8})

Greedy text is what `model.generate` writes without it. A sampled one obeys the same law with our noise, whose seed is
drawn from torch's generator, so that `torch.manual_seed` fixes it. What cannot be obeyed is refused, by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.errors import CapabilityError
from outpace.models.generation import GenerationConfig
from outpace.models.hf import wrap

__all__ = ["FOLDER", "generate"]

FOLDER = str(Path(__file__).parent / "repository")  # custom_generate=FOLDER, trust_remote_code=True does the same
_TOLD = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_OBEYED = ("MaxLengthCriteria", "EosTokenCriteria")
# Beams and the like have no step that a draft could shorten; the others are transformers' own bookkeeping.
_HARMLESS = ("num_return_sequences", "remove_invalid_values")
_wrapped: WeakKeyDictionary[Any, LanguageModel] = WeakKeyDictionary()


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Sequence[Any] = (),
    stopping_criteria: Sequence[Any] = (),
    generation_config: Any = None,
    *,
    method: str = "auto",
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    inputs_tensor: Tensor | None = None,
    **model_kwargs: Any,
) -> Any:
    """Continue prompts; transformers calls it, with everything prepared.

    Args:
        model: a transformers model, causal or with an encoder.
        input_ids: [B, P] int64, left-padded; of an encoder-decoder, what its decoder starts with.
        logits_processor, stopping_criteria: as `generation_config` asks for them; others are refused.
        generation_config: what `generate` was asked for.
        method: how to decode; the greedy text is the same with every exact one.
        options: of the method.
        seed: of what is drawn; None = the next number of torch's generator.
        inputs_tensor: [B, P] int64, the prompts before samples share them out.
        **model_kwargs: attention_mask tells padding.

    Returns:
        [B * num_return_sequences, P + N] int64, padded behind the end, or an output object that holds them.

    Raises:
        CapabilityError: something was asked for that we do not obey.
        ConfigError: a method or option that there is not.
    """
    source = input_ids if inputs_tensor is None else inputs_tensor
    asked = {key: value for key, value in generation_config.to_dict().items() if not key.startswith("_")}
    law = GenerationConfig.read(asked, "generation_config")
    _check(model, law, generation_config, source, input_ids, logits_processor, stopping_criteria, model_kwargs)
    ends = generation_config.eos_token_id
    ends = [] if ends is None else [int(ends)] if isinstance(ends, int) else [int(end) for end in ends]
    lm = _language_model(model).ending_with(ends)
    lm.generation = law
    samples, width = int(generation_config.num_return_sequences or 1), int(input_ids.shape[1])
    if seed is None:
        seed = int(torch.randint(1 << 62, ()))
    results = lm.generate(
        _prompts(source, model_kwargs.get("attention_mask"), samples),
        method=method,
        options=options,
        seed=seed,
        num_samples=samples,
        sampling="model",
        max_tokens=generation_config.max_length - width,
        min_tokens=max(0, (generation_config.min_length or 0) - width),
    )
    pad = generation_config.pad_token_id
    pad = pad if isinstance(pad, int) else ends[0] if ends else 0
    longest = max(len(result.tokens) for result in results)
    written = [result.tokens + [pad] * (longest - len(result.tokens)) for result in results]
    sequences = torch.cat([input_ids, torch.tensor(written, dtype=input_ids.dtype, device=input_ids.device)], dim=1)
    if not generation_config.return_dict_in_generate:
        return sequences
    kind = "GenerateEncoderDecoderOutput" if model.config.is_encoder_decoder else "GenerateDecoderOnlyOutput"
    return getattr(importlib.import_module("transformers.generation"), kind)(sequences=sequences)


def _language_model(model: Any) -> LanguageModel:
    """Return a model as ours: what it can do is found out once, by trying."""
    if model not in _wrapped:
        _wrapped[model] = LanguageModel(wrap(model), name=str(model.config._name_or_path or "model"))
    return _wrapped[model]


def _prompts(source: Tensor, mask: Tensor | None, samples: int) -> list[list[int]]:
    """Return each prompt without its padding; of an expanded mask every `samples`-th row counts."""
    if mask is None:
        return [list(map(int, row)) for row in source.tolist()]
    rows = mask[:: mask.shape[0] // source.shape[0]].bool()
    del samples
    return [row[shown].tolist() for row, shown in zip(source, rows, strict=True)]


def _check(
    model: Any,
    law: GenerationConfig,
    config: Any,
    source: Tensor,
    input_ids: Tensor,
    processors: Sequence[Any],
    criteria: Sequence[Any],
    model_kwargs: Mapping[str, Any],
) -> None:
    """Refuse what would be dropped without a word otherwise."""
    hint = "Leave it out, or call generate without custom_generate."
    unmet = [name for name in (*law.unmet, *law.search) if name not in _HARMLESS]
    unmet += [name for name in _TOLD if getattr(config, name, None)]
    if unmet:
        raise CapabilityError(f"{', '.join(unmet)}: not obeyed by our methods.", hint)
    own = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=input_ids.shape[1],
        encoder_input_ids=source,
        device=source.device,
        model_kwargs=dict(model_kwargs),
    )
    if len(processors) > len(own):
        raise CapabilityError(f"{type(processors[-1]).__name__}: a logits processor of yours is not obeyed.", hint)
    foreign = [type(found).__name__ for found in criteria if type(found).__name__ not in _OBEYED]
    if foreign:
        raise CapabilityError(f"{foreign[0]}: a stopping criterion of yours is not obeyed.", hint)
    if source.is_floating_point():
        raise CapabilityError("inputs_embeds: prompts have to be token ids here.", hint)
    if model.config.is_encoder_decoder and input_ids.shape[1] != 1:
        raise CapabilityError("decoder_input_ids: the decoder has to begin with its start token.", hint)
