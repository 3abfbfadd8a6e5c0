"""Encoder-decoders of transformers: each row's source is encoded once, and kept beside its cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import ConfigError, ModelError
from outpace.models.hf_adapter import TransformersAdapter
from outpace.models.hf_forward import stored_cache

__all__ = ["TransformersSeq2Seq"]


class TransformersSeq2Seq(TransformersAdapter):
    """An encoder-decoder transformers model; the prompt is its source, and each row's encoder runs once.

    A cache's `extra` holds the encoder's states [B, S, hidden], their mask [B, S] (1 = a source token), and per decoder
    layer the cross-attention's keys and values, each [B, S, H, D].

    `max_source` is 0 where the encoder counts distances, or computes its positions.
    """

    start_token: int

    def __init__(self, model: Any) -> None:
        config, settings = model.config, getattr(model, "generation_config", None)
        names, owners = ("decoder_start_token_id", "bos_token_id"), (settings, config)
        found = [getattr(owner, name, None) for name in names for owner in owners]
        start = next((token for token in found if token is not None), None)
        if start is None:
            raise ModelError("The model names no token to start its decoder with.", "Set decoder_start_token_id.")
        self.start_token = int(start)
        self.max_source = _source_positions(model.get_encoder())
        super().__init__(model)

    @torch.no_grad()
    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Run the encoder on each row's source tokens and keep what the decoder needs in `cache`.

        One decoder token is run besides, for the cross-attention's keys and values.
        """
        if not all(sources):
            raise ConfigError("A source is empty.", "Give at least one token.")
        longest, pad = max(len(source) for source in sources), self.model.config.pad_token_id or 0
        if 0 < self.max_source < longest:
            raise ConfigError(
                f"The source has {longest} tokens, but the encoder's positions end at {self.max_source}.",
                "Shorten the source, or write it part by part.",
            )
        padded = [[*source, *([pad] * (longest - len(source)))] for source in sources]
        held = torch.tensor([len(source) for source in sources], device=self.device)[:, None]
        mask = (torch.arange(longest, device=self.device) < held).long()
        hidden = self.model.get_encoder()(torch.tensor(padded, device=self.device), attention_mask=mask)[0]
        cache.extra = [hidden, mask]
        if self.mode != "plain":
            start = torch.full((len(sources), 1), self.start_token, device=self.device)
            past = self._call_decoder({"decoder_input_ids": start}, hidden, mask, None, True).past_key_values
            layers = past.cross_attention_cache.layers
            cache.extra += [kv.transpose(1, 2).contiguous() for layer in layers for kv in (layer.keys, layer.values)]

    def _call(
        self, tokens: Tensor, inputs: Tensor | None, position: Tensor | None, past: Any, extra: Sequence[Tensor]
    ) -> Any:
        from transformers.cache_utils import EncoderDecoderCache

        soft = None if inputs is None else inputs.to(self.dtype)
        arguments = {"decoder_input_ids": tokens} if soft is None else {"decoder_inputs_embeds": soft}
        if position is not None and "decoder_position_ids" in self._accepts:
            arguments["decoder_position_ids"] = position
        both = None if past is None else EncoderDecoderCache(past, stored_cache(extra[2:]))
        return self._call_decoder(arguments, extra[0], extra[1], both, past is not None)

    def _call_decoder(
        self, arguments: dict[str, Tensor], hidden: Tensor, mask: Tensor, past: Any, is_cached: bool
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        states = BaseModelOutput(last_hidden_state=hidden)
        return self.model(
            **arguments, encoder_outputs=states, attention_mask=mask, past_key_values=past, use_cache=is_cached
        )

    def _first_call(self, tokens: Tensor, **more: Any) -> Any:
        return self.model(input_ids=tokens, decoder_input_ids=tokens, use_cache=True, **more)

    def _layers_of(self, past: Any) -> Sequence[Any]:
        return getattr(getattr(past, "self_attention_cache", None), "layers", ())

    def _probe_cache(self, rows: int, capacity: int) -> Cache:
        cache = self.new_cache(rows, capacity)
        texts = self._probe_texts().tolist()
        self.encode([texts[0][:5], texts[1][:3]], cache)
        return cache


def _source_positions(encoder: Any) -> int:
    """Return how many positions the encoder's tables hold: the smallest table whose name says that it holds them.

    0 = it has none.
    """
    sizes = [
        module.num_embeddings - _first_position(module)
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.Embedding) and "position" in name and "relative" not in name
    ]
    return min(sizes, default=0)


def _first_position(table: Any) -> int:
    """Return the row of a position table that the first token reads."""
    offset = getattr(table, "offset", None)  # BART and its kin
    padding = table.padding_idx  # RoBERTa and its kin
    return int(offset) if offset is not None else 0 if padding is None else int(padding) + 1
