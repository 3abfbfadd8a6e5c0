"""What a transformers model can do, found out by trying it and not by its name.

On the way in, a few short forwards are compared with the model's own full forward, and the adapter settles for the
first way of scoring (`outpace.models.hf_scoring`) that gives the same logits. The slower three say so in `notes`. A
model that looks ahead is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import CapabilityError, ModelError
from outpace.models.hf_forward import head_only
from outpace.models.hf_quiet import first_line, quiet
from outpace.models.hf_scoring import TransformersScorer
from outpace.types import Capabilities, Outputs

__all__ = ["TransformersAdapter"]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
MAX_POSITIONS = ("max_target_positions", "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
UNLIMITED = 2048  # positions promised where a model names none (relative positions)
NOTES = {
    "rows": "transformers adapter: this model counts positions by itself, so its rows are scored one by one.",
    "own": "transformers adapter: this model's cache has no slots, so its rows are scored one by one, each on a cache "
    "of the model's own; rejected drafts are undone by {how}.",
    "plain": "transformers adapter: this model has no cache that can roll back, so every step reads the whole prefix.",
}
OWN = ("past_key_values", "cache_params", "state")  # what a forward calls the cache that it returns and takes
PROBE = 12  # tokens of the longest probed row


class TransformersAdapter(TransformersScorer):
    """A causal transformers model, scored in the fastest way that is right.

    Args:
        model: any `...ForCausalLM` (or, for the subclass, `...ForConditionalGeneration`).
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        with quiet(), torch.no_grad():
            self.capabilities = self._discover()
            self._look_inside()
            self._settle()
        self.shape, self.path = str(self.model.config), self.mode

    def _discover(self) -> Capabilities:
        """Run three tokens; read the cache's shapes and the vocabulary off what comes out."""
        config = self.model.config.get_text_config(decoder=True)
        try:
            output = self._first_call(torch.tensor([[1, 2, 3]], device=self.device))
        except Exception as error:  # whatever it raises, this adapter cannot run it
            raise ModelError(
                f"{type(self.model).__name__} cannot be run on plain tokens: {first_line(error)}",
                "Only models from tokens to tokens fit this adapter.",
            ) from error
        layers = list(self._layers_of(getattr(output, "past_key_values", None)))
        self._shapes = _shapes(layers)
        self._own = next((name for name in OWN if getattr(output, name, None) is not None), "")
        self._has_windows = any(getattr(layer, "is_sliding", False) for layer in layers)
        return Capabilities(
            vocab_size=output.logits.shape[-1],
            max_positions=self._max_positions(config),
            has_tree=False,
            num_layers=int(getattr(config, "num_decoder_layers", None) or getattr(config, "num_hidden_layers", 0) or 0),
            is_encoder_decoder=self.model.config.is_encoder_decoder,
        )

    def _look_inside(self) -> None:
        """Find the layers between which hidden states are read, by comparing with those that the model returns."""
        count, tokens = self.capabilities.num_layers, torch.tensor([[1, 2, 3]], device=self.device)
        root = self.model.get_decoder() if self.capabilities.is_encoder_decoder else self.model
        lists = [
            list(each) for each in root.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == count > 0
        ]
        for blocks in lists:
            forward = head_only(1, 3, None, self.device, Outputs(tuple(range(count + 1)), has_last=True))
            try:
                with forward.running(blocks):
                    output = self._first_call(tokens, output_hidden_states=True)
            except Exception:  # a model that cannot return them, in its own words
                return
            names = ("decoder_hidden_states", "hidden_states")
            theirs = next((found for name in names if (found := getattr(output, name, None)) is not None), ())
            if forward.hidden is None or len(theirs) != count + 1 or len(forward.taps) != count + 1:
                continue
            if any(states.shape[:-1] != (1, 3) for states in forward.taps.values()):  # several streams side by side
                continue
            # A few models return what leaves each layer instead of what enters it.
            if any(all(torch.equal(forward.taps[at + n], theirs[n]) for n in range(count)) for at in (0, 1)):
                self._blocks, self._width = blocks, forward.taps[0].shape[-1]
                self.capabilities = replace(self.capabilities, has_hidden=True)
                head = self.model.get_output_embeddings()
                self._has_plain_head = torch.equal(head(forward.hidden), output.logits)
                return

    def _max_positions(self, config: Any) -> int:
        found = next(
            (int(n) for n in (getattr(config, name, None) for name in MAX_POSITIONS) if n and n > 0), UNLIMITED
        )
        scaling = getattr(config, "rope_parameters", None) or {}
        named = [scaling, *(value for value in scaling.values() if isinstance(value, dict))]
        kinds = {str(item.get("rope_type", "default")) for item in named}
        if kinds & {"dynamic", "longrope"}:
            # Their frequencies change with the longest row of a batch, so longer texts would not be a row's own.
            first = [item.get("original_max_position_embeddings") for item in named]
            found = min([found, *(int(n) for n in first if n)])
            self.notes.append(f"transformers adapter: texts end at {found} tokens, where the model's rotation changes.")
        return found

    def _layers_of(self, past: Any) -> Sequence[Any]:
        return getattr(past, "layers", ())

    def _probe_cache(self, rows: int, capacity: int) -> Cache:
        return self.new_cache(rows, capacity)

    def _settle(self) -> None:
        """Choose the fastest way of scoring whose logits equal the model's own full forward."""
        texts = self._probe_texts()
        self.mode = "plain"
        want = [self._full(texts, row, PROBE) for row in range(2)]
        short = self._full(texts, 0, PROBE // 2)
        if not self._is_close(short, want[0][: PROBE // 2]):
            raise CapabilityError(
                f"{type(self.model).__name__} scores a beginning differently once more follows: it is not causal.",
                "Use a causal or an encoder-decoder model.",
            )
        for mode in ("batched", "rows"):
            self.mode = mode
            if self._shapes and self._is_right(self._try_chain, texts, want):
                has_tree = mode == "batched" and self._is_right(self._try_tree, texts, want)
                self.capabilities = replace(self.capabilities, has_tree=has_tree)
                break
        else:
            self.mode = "own" if self._owns(texts, want) else "plain"
        self._reads_soft = self.mode in ("batched", "rows") and self._finds_embedding(texts, want[0])
        if self.mode in NOTES:
            how = "a copy of its state" if self._can_copy else "reading the text again"
            self.notes.append(NOTES[self.mode].format(how=how))

    def _finds_embedding(self, texts: Tensor, want: Tensor) -> bool:
        """Find what embeds the decoder's tokens: its own table or a shared one, scaled behind it or not."""
        extra = [tensor[:1] for tensor in self._probe_cache(2, PROBE).extra]
        owner = self.model.get_decoder()
        scales = dict.fromkeys((1.0, float(getattr(owner, "embed_scale", None) or 1)))
        tables = [self.model.get_input_embeddings(), getattr(owner, "embed_tokens", None)]
        for self._table in [table for table in tables if table is not None]:
            for self._embed_scale in scales:
                try:
                    logits = self._call(texts[:1], self.embed(texts[:1]), None, None, extra).logits
                except Exception:  # it takes tokens only, and says so in its own words
                    return False
                if self._is_close(logits[0], want):
                    return True
        return False

    def _owns(self, texts: Tensor, want: list[Tensor]) -> bool:
        """Find out whether rows can be scored on caches of the model's own, and how."""
        if self._own not in self._accepts or self.model.config.is_encoder_decoder:
            return False
        self.mode = "own"
        for self._reads_many in (True, False):
            if self._is_right(self._try_chain, texts, want):
                self._can_copy = self._is_right(self._try_back, texts, want)
                return True
        return False

    def _probe_texts(self) -> Tensor:
        """Return [2, PROBE] tokens, none of them special."""
        config, vocab = self.model.config, self.capabilities.vocab_size
        special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")}
        flat = {item for found in special for item in (found if isinstance(found, list) else [found])}
        words = [token for token in range(min(vocab, 1000)) if token not in flat] or [0]
        chosen = [[words[(7 * i * i + 3 * i + 5 + 11 * row) % len(words)] for i in range(PROBE)] for row in range(2)]
        return torch.tensor(chosen, device=self.device)

    def _full(self, texts: Tensor, row: int, length: int) -> Tensor:
        """Return logits [length, V] of one row's own full forward, without a cache."""
        extra = [tensor[row : row + 1] for tensor in self._probe_cache(2, PROBE).extra]
        logits: Tensor = self._call(texts[row : row + 1, :length], None, None, None, extra).logits
        return logits[0]

    def _is_right(self, attempt: Any, texts: Tensor, want: list[Tensor]) -> bool:
        try:
            pairs = attempt(texts, want)
        except Exception:  # a model that cannot be run in this way fails in its own words
            return False
        if (
            self._has_windows and not self._num_masks and self.mode != "own"
        ):  # a window wider than the probe, kept by unknown means
            return False
        return all(self._is_close(ours, theirs) for ours, theirs in pairs)

    def _is_close(self, ours: Tensor, theirs: Tensor) -> bool:
        scale = theirs.double().abs().max()
        # Recurrent states are computed in float32 at best, whatever the model's type.
        tolerance = (
            TOLERANCE.get(self.dtype, 5e-2) if self.mode != "own" else max(1e-3, TOLERANCE.get(self.dtype, 5e-2))
        )
        return bool((ours.double() - theirs.double()).abs().max() <= tolerance * scale)

    def _begin(self, texts: Tensor) -> tuple[Cache, Tensor]:
        """Score and keep seven tokens of one row and two of the other; return the cache and their logits."""
        cache, ends = self._probe_cache(2, 2 * PROBE), torch.tensor([[7], [2]], device=self.device)
        first = torch.arange(7, device=self.device).expand(2, -1)
        scores = self.score(texts[:, :7], torch.where(first < ends, first, -1), None, cache).logits
        cache.keep([range(7), range(2)])
        return cache, scores

    def _try_chain(self, texts: Tensor, want: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Two rows, seven and two tokens long, then three more of each."""
        cache, scores = self._begin(texts)
        ends = cache.lengths
        pairs = [(scores[row, :end], want[row][:end]) for row, end in enumerate(ends)]
        tokens = torch.stack([texts[row, end : end + 3] for row, end in enumerate(ends)])
        position = torch.tensor([[end, end + 1, end + 2] for end in ends], device=self.device)
        ask = torch.tensor([[1, 2], [0, 2]], device=self.device)
        scores = self.score(tokens, position, None, cache, ask).logits
        return pairs + [(scores[row], want[row][ends[row] + ask[row]]) for row in range(2)]

    def _try_back(self, texts: Tensor, want: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Three tokens of which one row keeps one and the other none, then what its text goes on with."""
        cache, _ = self._begin(texts)
        ends, kept = list(cache.lengths), (1, 0)
        tokens = torch.stack([texts[row, [end, 0, 1]] for row, end in enumerate(ends)])
        self.score(tokens, torch.tensor([[end, end + 1, end + 2] for end in ends], device=self.device), None, cache)
        cache.keep([range(count) for count in kept])
        starts = [end + count for end, count in zip(ends, kept, strict=True)]
        tokens = torch.stack([texts[row, start : start + 2] for row, start in enumerate(starts)])
        position = torch.tensor([[start, start + 1] for start in starts], device=self.device)
        scores = self.score(tokens, position, None, cache).logits
        return [(scores[row], want[row][start : start + 2]) for row, start in enumerate(starts)]

    def _try_tree(self, texts: Tensor, want: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """A token, its rival, and the token's child, which must not see the rival."""
        plain, self.capabilities = self.capabilities, replace(self.capabilities, has_tree=True)
        try:
            cache, _ = self._begin(texts)
            ends = cache.lengths
            tokens = torch.stack([texts[row, [end, end + 2, end + 1]] for row, end in enumerate(ends)])
            position = torch.tensor([[end, end, end + 1] for end in ends], device=self.device)
            sight = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.bool, device=self.device)
            scores = self.score(tokens, position, sight.expand(2, -1, -1), cache).logits
            return [(scores[row][[0, 2]], want[row][[end, end + 1]]) for row, end in enumerate(ends)]
        finally:
            self.capabilities = plain


def _shapes(layers: Sequence[Any]) -> list[tuple[int, int, torch.dtype]]:
    """Return every buffer's heads, head size and dtype, or [] if a layer keeps something else than keys and values."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    shapes = []
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return []
        for entries in (layer.keys, layer.values):
            if entries is None or entries.dim() != 4 or entries.shape[0] != 1:
                return []
            shapes.append((entries.shape[1], entries.shape[3], entries.dtype))
    return shapes
