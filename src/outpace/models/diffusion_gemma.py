"""DiffusionGemma: a causal encoder reads the prompt, a decoder over a canvas of random tokens says what stands there.

Layout and forward are those of transformers' `DiffusionGemmaForBlockDiffusion`, which runs it; both sides share their
weights. Its noise is uniform: where nothing is written yet, a random token stands. Here the token behind the vocabulary
stands for "nothing yet", and in every forward a random token is shown in its place, drawn by place and by how many
places are written. So every method on a canvas runs; `eb-sampler` is the rule of the model's own sampler.

Different from transformers' `generate`: one canvas, as long as what is asked for; a token that was written stays; no
step is told the laws of the one before (self-conditioning is at its first step throughout), and the temperature is the
caller's. Pictures are not read, and keys and values are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache, Counter
from outpace.errors import CapabilityError, ConfigError, ModelError
from outpace.models.hf_quiet import quiet
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Outputs, Scores

__all__ = ["MODEL_TYPE", "DiffusionGemma", "noisy", "open_diffusion_gemma"]

MODEL_TYPE = "diffusion_gemma"


class DiffusionGemma(Adapter):
    """The model behind the contract; `score` takes whole texts and keeps nothing in its cache.

    Args:
        model: a `DiffusionGemmaForBlockDiffusion` of transformers.
    """

    def __init__(self, model: Any) -> None:
        self.model, config = model.eval().requires_grad_(False), model.config
        self.sign = int(config.text_config.vocab_size)
        self.canvas_length = int(config.canvas_length)
        self.capabilities = Capabilities(
            self.sign + 1,
            int(config.text_config.max_position_embeddings),
            attention="full",
            has_tree=False,
            num_layers=int(config.text_config.num_hidden_layers),
            mask_id=self.sign,
            is_renoised=True,
        )
        self.device, self.dtype, self.path = model.device, model.dtype, "transformers"
        self.notes = ["DiffusionGemma runs through transformers, without self-conditioning and without a cache."]

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache, which stays so."""
        return Cache([torch.zeros(rows, capacity, dtype=torch.int8, device=self.device)], 1, counter, [0] * rows)

    def note_prompts(self, cache: Cache, prompts: Sequence[int]) -> None:
        """Note where each row's canvas begins."""
        cache.extra = [torch.tensor([[length] for length in prompts], dtype=torch.int64, device=cache.device)]

    def embed(self, tokens: Tensor) -> Tensor:
        """Refuse: both sides read tokens."""
        raise CapabilityError("DiffusionGemma takes no soft inputs.", "Use a method that needs none.")

    def head(self, hidden: Tensor) -> Tensor:
        """Refuse: no states are given."""
        raise CapabilityError("DiffusionGemma gives no states.", "Use a method that needs none.")

    @torch.no_grad()
    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run one forward for each row; see `outpace.types.Adapter`.

        Raises:
            CapabilityError: copies side by side, entries of a cache, or a text without a prompt's end.
            ConfigError: a canvas longer than the model's.
        """
        self.check(outputs, skip)
        if visible is not None or inputs is not None:
            raise CapabilityError("DiffusionGemma reads one canvas per row.", "Use a method without copies.")
        if not cache.extra or any(cache.lengths):
            raise CapabilityError("DiffusionGemma keeps no entries of a canvas.", "Use cache=none.")
        cache.check_room(tokens.shape[1])
        cache.stage(position)
        cache.counter.add(tokens.numel(), self.capabilities.num_layers)
        asked = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens) if ask is None else ask
        logits = torch.full((*asked.shape, self.sign + 1), float("-inf"), dtype=torch.float32, device=self.device)
        for row, begin in enumerate(cache.extra[-1][:, 0].tolist()):
            text = tokens[row][position[row] >= 0]
            if len(text) > begin:
                laws = self._laws(text[:begin], text[begin:])
                logits[row, :, :-1] = laws[(asked[row] - begin).clamp(0, len(laws) - 1)]
        return Scores(logits)

    def _laws(self, prompt: Tensor, canvas: Tensor) -> Tensor:
        """Return logits [C, V] of a canvas [C] behind a prompt [N]."""
        if len(canvas) > self.canvas_length:
            reason = f"The canvas has {len(canvas)} places, the model's {self.canvas_length}."
            raise ConfigError(reason, f"Use max_tokens={self.canvas_length} or less.")
        shown = noisy(canvas, self.sign, len(prompt))
        laws: Tensor = self.model(input_ids=prompt[None], decoder_input_ids=shown[None]).logits[0]
        return laws


def noisy(canvas: Tensor, sign: int, begin: int) -> Tensor:
    """Return a canvas [C] with random tokens below `sign` in place of `sign`, by place and by how many are written.

    Args:
        canvas: token ids.
        sign: what stands where nothing is written; the model's tokens are below it.
        begin: place of the first one in the text.
    """
    is_open = canvas == sign
    # Of the row alone, so that it is the same in any batch; another one whenever something was written.
    generator = torch.Generator().manual_seed(1_000_003 * begin + int((~is_open).sum()))
    drawn = torch.randint(0, sign, canvas.shape, generator=generator).to(canvas.device)
    return torch.where(is_open, drawn, canvas)


def open_diffusion_gemma(directory: Path, dtype: torch.dtype, device: torch.device) -> DiffusionGemma:
    """Return the adapter of a directory.

    Raises:
        ModelError: the files are not whole, or hold tensors that nobody reads.
        CapabilityError: transformers is missing, or knows no such model.
    """
    try:
        from transformers import DiffusionGemmaForBlockDiffusion
    except ImportError as error:
        reason = "DiffusionGemma runs through transformers, and this one does not know it."
        raise CapabilityError(reason, "Install transformers 5.13 or later.") from error
    with quiet():
        try:
            loaded: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(
                directory, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # transformers raises a dozen kinds; each means that the model cannot be had
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"transformers cannot load {directory}: {reason}", "Fetch its files again.") from error
    model, report = loaded
    for what, names in (("lacks", report["missing_keys"]), ("holds unknown", report["unexpected_keys"])):
        if names:
            first = sorted(names)[0]
            raise ModelError(f"{directory} {what} {len(names)} tensors, {first} among them.", "Fetch its files again.")
    return DiffusionGemma(model.to(device))
