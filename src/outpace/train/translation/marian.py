"""Marian's architecture, from transformers: a Transformer with norms after the layers and sinusoidal positions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outpace import kernels
from outpace.api.engine import LanguageModel
from outpace.errors import ModelError
from outpace.models.rounded import joined
from outpace.models.seq2seq.loading import load_pair
from outpace.train.data import EOS_ID
from outpace.train.pairs import START_ID, PairBatch

from .network import NetworkFiles, PairNetwork, until_end

__all__ = ["Marian", "MarianShape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarianShape:
    """Sizes of a Marian network, its embeddings tied.

    Attributes:
        width: Size of the residual stream.
        encoder_layers: Layers of the encoder.
        decoder_layers: Layers of the decoder.
        heads: Attention heads.
        ffn: Width of the feed-forward layers.
        context: Most positions on either side.
        dropout: Of embeddings and residual branches.
    """

    width: int = 192
    encoder_layers: int = 3
    decoder_layers: int = 3
    heads: int = 4
    ffn: int = 768
    context: int = 256
    dropout: float = 0.1

    def build(self, vocab: int) -> Marian:
        """Return a network with random weights.

        Raises:
            ModelError: When transformers is not installed.
        """
        return Marian(self._config(vocab))

    def load(self, directory: Path) -> Marian:
        """Return the network of a directory, in float32, without dropout; its sizes are the directory's.

        Raises:
            ModelError: When a file is missing.
        """
        if not (directory / "model.safetensors").is_file():
            raise ModelError(f"{directory} holds no translator", "Give a directory that `outpace train` wrote.")
        marian = _transformers()
        marian.utils.logging.disable_progress_bar()
        weights, _ = joined(load_file(directory / "model.safetensors"))
        config = marian.MarianConfig.from_pretrained(directory)
        model = marian.MarianMTModel.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
        network = Marian(model.config, model)
        network.eval()
        return network

    def _config(self, vocab: int) -> Any:
        marian = _transformers()
        sides: dict[str, Any] = {
            f"{side}_{name}": size
            for side, layers in (("encoder", self.encoder_layers), ("decoder", self.decoder_layers))
            for name, size in (("layers", layers), ("attention_heads", self.heads), ("ffn_dim", self.ffn))
        }
        return marian.MarianConfig(
            vocab_size=vocab,
            decoder_vocab_size=vocab,
            d_model=self.width,
            max_position_embeddings=self.context,
            activation_function="relu",
            dropout=self.dropout,
            scale_embedding=True,
            pad_token_id=EOS_ID,
            eos_token_id=EOS_ID,
            bos_token_id=START_ID,
            decoder_start_token_id=START_ID,
            forced_eos_token_id=None,
            **sides,
        )


class Marian(PairNetwork):
    """A Marian model in training.

    Args:
        config: a `MarianConfig`.
        model: the model; None = a new one with random weights.
    """

    def __init__(self, config: Any, model: Any = None) -> None:
        super().__init__()
        # Backward through the fused attention is three times slower on short sentences.
        config._attn_implementation = "eager"
        self.model: Any = model or _transformers().MarianMTModel(config)
        self.model.train()

    def logits(self, batch: PairBatch) -> Tensor:
        """Return what it says at each place with a label, [N, V]."""
        output = self.model.model(
            input_ids=batch.sources, attention_mask=batch.mask, decoder_input_ids=batch.inputs, use_cache=False
        )
        found: Tensor = self.model.lm_head(output.last_hidden_state[batch.is_real])
        return found

    @property
    def table(self) -> Tensor:
        """The embeddings, [V, width]."""
        found: Tensor = self.model.model.shared.weight
        return found

    @torch.no_grad()
    def translate(self, sources: Tensor, mask: Tensor, most: int) -> list[list[int]]:
        """Write the most likely next token until the end; see `PairNetwork.translate`."""
        most = min(most, self.model.config.max_position_embeddings - 1)
        options = {"max_new_tokens": most, "do_sample": False, "num_beams": 1}
        written: Tensor = self.model.generate(input_ids=sources, attention_mask=mask, **options)
        return [until_end(row) for row in written[:, 1:].tolist()]

    def writer(self) -> Callable[[Tensor, Tensor, int], list[list[int]]]:
        """Return what `translate` does, in float32 by the engine: on a CPU in a third of the time."""
        if self.table.device.type != "cpu":
            return self.translate
        files = self.export()
        with TemporaryDirectory() as folder:
            place = Path(folder)
            save_file(
                {name: weight.contiguous() for name, weight in files.weights.items()}, place / "model.safetensors"
            )
            (place / "config.json").write_text(json.dumps(files.config), encoding="utf-8")
            (place / "generation_config.json").write_text(json.dumps(dict(files.generation)), encoding="utf-8")
            model = LanguageModel(load_pair(place, "float32", "cpu", kernels=kernels), end_tokens=(EOS_ID,))

        def write(sources: Tensor, mask: Tensor, most: int) -> list[list[int]]:
            rows = [row[:count] for row, count in zip(sources.tolist(), mask.sum(1).tolist(), strict=True)]
            most = min(most, self.model.config.max_position_embeddings - 1)
            with torch.autocast("cpu", enabled=False):
                return [until_end(result.tokens) for result in model.generate(rows, max_tokens=most)]

        return write

    def export(self) -> NetworkFiles:
        """Return its files: tied tables once, position tables not at all."""
        config = self.model.config
        tied = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
        return NetworkFiles(
            weights={
                name: weight
                for name, weight in self.model.state_dict().items()
                if name not in tied and not name.endswith("embed_positions.weight")
            },
            config=config.to_diff_dict() | {"architectures": ["MarianMTModel"], "dtype": "bfloat16"},
            context=config.max_position_embeddings,
            architecture=f"Marian, {config.encoder_layers} encoder and {config.decoder_layers} decoder layers "
            f"of width {config.d_model}",
        )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "Training a translator needs transformers, which is not installed.", 'pip install "outpace[transformers]"'
        ) from None
    return transformers
