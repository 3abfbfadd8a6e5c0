"""Encoder-decoders in training: Marian's architecture from transformers, taught by pairs or by a larger one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ModelError

from .data import EOS_ID, find_data
from .export import Export
from .loop import Loop, inherited, log
from .objectives import TEACHER_SHARE
from .pairs import IGNORED, START_ID, PairBatches, encode_pairs, join_neighbours, train_pair_tokenizer
from .recipes import TranslationRecipe


def new_network(recipe: TranslationRecipe, seed: int) -> nn.Module:
    """Return a Marian network with random weights, its embeddings tied.

    Raises:
        ModelError: When transformers is not installed.
    """
    try:
        from transformers import MarianConfig, MarianMTModel
    except ImportError:
        raise ModelError(
            "Training a translator needs transformers, which is not installed.", 'pip install "outpace[transformers]"'
        ) from None
    sides: dict[str, Any] = {
        f"{side}_{name}": size
        for side, layers in (("encoder", recipe.encoder_layers), ("decoder", recipe.decoder_layers))
        for name, size in (("layers", layers), ("attention_heads", recipe.heads), ("ffn_dim", recipe.ffn))
    }
    config = MarianConfig(
        vocab_size=recipe.vocab,
        decoder_vocab_size=recipe.vocab,
        d_model=recipe.width,
        max_position_embeddings=recipe.context,
        activation_function="relu",
        dropout=recipe.dropout,
        scale_embedding=True,
        pad_token_id=EOS_ID,
        eos_token_id=EOS_ID,
        bos_token_id=START_ID,
        decoder_start_token_id=START_ID,
        forced_eos_token_id=None,
        **sides,
    )
    # Backward through the fused attention is three times slower on short sentences.
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    network: nn.Module = MarianMTModel(config)
    return network.train()


def load_translator(directory: Path) -> nn.Module:
    """Return the training network of an exported translator, in float32, without dropout.

    Raises:
        ModelError: When a file is missing.
    """
    from transformers import MarianMTModel
    from transformers.utils import logging as theirs

    if not (directory / "model.safetensors").is_file():
        raise ModelError(f"{directory} holds no translator", "Give a directory that `outpace train` wrote.")
    theirs.disable_progress_bar()
    network: nn.Module = MarianMTModel.from_pretrained(directory, dtype=torch.float32)
    return network.eval()


def hidden_states(network: Any, sources: Tensor, mask: Tensor, inputs: Tensor, is_real: Tensor) -> Tensor:
    """Return the decoder's last states where there is a label, [N, width]."""
    output = network.model(input_ids=sources, attention_mask=mask, decoder_input_ids=inputs, use_cache=False)
    states: Tensor = output.last_hidden_state[is_real]
    return states


def translation_loss(network: Any, batch: tuple[Tensor, ...], teacher: Any = None) -> Tensor:
    """Mean cross-entropy of the translations, in nats per token.

    No label smoothing: it would make sampling at temperature 1 write a random token every ten.

    Args:
        network: a Marian model.
        batch: sources, mask, decoder inputs, labels, see `PairBatches.batch`.
        teacher: the model whose laws are learnt, with a little of the text itself; None = the text alone.
    """
    sources, mask, inputs, labels = batch
    is_real = labels != IGNORED
    logits = network.lm_head(hidden_states(network, sources, mask, inputs, is_real)).float()
    text = F.cross_entropy(logits, labels[is_real])
    if teacher is None:
        return text
    with torch.no_grad():
        law = teacher.lm_head(hidden_states(teacher, sources, mask, inputs, is_real)).float().softmax(-1)
    taught = F.cross_entropy(logits, law)
    return TEACHER_SHARE * taught + (1 - TEACHER_SHARE) * text


@dataclass(slots=True, kw_only=True)
class PairTrainer(Loop):
    """An encoder-decoder in training.

    Attributes:
        teacher: The parent's model where the recipe is distilled.
        batches: The data.
        num_tokens: Tokens in the pairs, both sides.
    """

    recipe: TranslationRecipe
    teacher: nn.Module | None
    batches: PairBatches
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """Build the optimisers and count the data."""
        Loop.__post_init__(self)
        self.num_tokens = sum(len(ids) for side in (self.batches.sources, self.batches.targets) for ids in side)

    def loss(self) -> Tensor:
        """Return the loss of the step's pairs; dropout's draws depend on seed and step alone."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        batch = tuple(tensor.to(self.device) for tensor in self.batches.batch(self.step))
        return translation_loss(self.network, batch, self.teacher)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of both sides in a mean step."""
        return self.num_tokens // self.batches.steps_per_epoch

    def described(self) -> Export:
        """Return the model as it is now, as its files tell it."""
        recipe, source, network = self.recipe, self.recipe.source, cast(Any, self.network)
        is_free = "research" not in source.licence
        return Export(
            weights=stored_weights(self.network),
            config=network.config.to_diff_dict() | {"architectures": ["MarianMTModel"], "dtype": "bfloat16"},
            generation={
                "bos_token_id": START_ID,
                "decoder_start_token_id": START_ID,
                "eos_token_id": EOS_ID,
                "pad_token_id": EOS_ID,
            },
            context=recipe.context,
            facts=(
                f"- architecture: Marian, {recipe.encoder_layers} encoder and {recipe.decoder_layers} decoder layers "
                f"of width {recipe.width}; runs through transformers",
            ),
            seen=f"{self.step / self.batches.steps_per_epoch:.1f} epochs",
            data=(
                "| source | used | origin | licence | pairs | tokens |",
                "|---|---|---|---|---|---|",
                f"| {source.name} | {source.note} | {source.origin} | {source.licence} "
                f"| {len(self.batches.sources):,} | {self.num_tokens:,} |",
                "",
                f"A share of {recipe.joined:.0%} of the pairs was made by joining two or three others.",
                "Held out: the splits `valid` and `test`.",
            ),
            licence=(
                _SHIPPED if is_free else _KEPT,
                "A test and teaching model: it gets much wrong, and it must not be relied on for anything.",
            ),
        )


def stored_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights that a file needs: tied tables once, position tables not at all."""
    tied = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    return {
        name: weight
        for name, weight in network.state_dict().items()
        if name not in tied and not name.endswith("embed_positions.weight")
    }


_KEPT = "The texts are for research only: neither they nor these weights may be passed on."
_SHIPPED = (
    "The weights ship under Apache-2.0 as part of Outpace; the texts keep the licence above "
    "(attribution: tatoeba.org and www.manythings.org/anki)."
)


def build_translator(recipe: TranslationRecipe, out: Path, data: Path | None, *, steps: int, seed: int) -> PairTrainer:
    """Read the pairs and make the networks of a run (or take them from the parent)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs = recipe.source.pairs(find_data(data), "train")
    network, teacher = new_network(recipe, seed), None
    tokenizer, parent = inherited(recipe, out, lambda: train_pair_tokenizer(pairs, recipe.vocab))
    if parent is not None and recipe.objective == "distilled":
        teacher = load_translator(parent).to(device).requires_grad_(False)
    elif parent is not None:
        network.load_state_dict(load_translator(parent).state_dict())
    batches = encode_pairs(tokenizer, join_neighbours(pairs, recipe.joined, seed), recipe.budget, recipe.longest, seed)
    log.info("%s: %d pairs, %d steps an epoch", recipe.source.name, len(batches.sources), batches.steps_per_epoch)
    return PairTrainer(
        recipe=recipe,
        network=network,
        teacher=teacher,
        batches=batches,
        tokenizer=tokenizer,
        device=device,
        seed=seed,
        steps=steps,
    )
