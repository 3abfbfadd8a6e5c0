"""Writing a trained translator as a Hugging Face directory with a card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import nn

from .data import EOS_ID, MASK
from .export import draw_losses, write_json
from .pairs import START, START_ID
from .recipes import TranslationRecipe
from .sources import END


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslationRun:
    """What the card tells of a training run.

    Attributes:
        recipe: The settings.
        step: Steps done.
        steps: Steps planned.
        epochs: How often each pair was seen.
        pairs: Pairs, joined ones included.
        tokens: Their tokens, both sides.
        seed: The seed.
        losses: Loss of each step, in nats per token.
        seconds: Time in steps.
        device: `cpu` or `cuda`.
        date: Day of the export, ISO.
    """

    recipe: TranslationRecipe
    step: int
    steps: int
    epochs: float
    pairs: int
    tokens: int
    seed: int
    losses: tuple[float, ...]
    seconds: float
    device: str
    date: str


def export_translator(network: nn.Module, tokenizer: Tokenizer, run: TranslationRun, out: Path) -> None:
    """Write config, bfloat16 weights, tokenizer, generation settings, card and loss curve to `out`."""
    config: Any = network.config
    weights = stored_weights(network)
    part = out / "model.safetensors.part"
    # Written by hand, since save_file makes a file that only its owner may read.
    part.write_bytes(save(weights, metadata={"format": "pt"}))
    part.replace(out / "model.safetensors")
    settings = config.to_diff_dict() | {"architectures": ["MarianMTModel"], "dtype": "bfloat16"}
    write_json(out / "config.json", settings)
    names = {"bos_token_id": START_ID, "decoder_start_token_id": START_ID}
    write_json(out / "generation_config.json", names | {"eos_token_id": EOS_ID, "pad_token_id": EOS_ID})
    write_json(out / "tokenizer_config.json", _tokenizer_config(run.recipe.context))
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "card.md").write_text(card(run, sum(weight.numel() for weight in weights.values())), encoding="utf-8")
    if run.step == run.steps:
        draw_losses(run.losses, out / "loss.png")


def stored_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a file needs: tied tables once, position tables not at all, in bfloat16."""
    state = network.state_dict()
    tied = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    return {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in state.items()
        if name not in tied and not name.endswith("embed_positions.weight")
    }


def _tokenizer_config(context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "mask_token": MASK,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }


def card(run: TranslationRun, parameters: int) -> str:
    """The model card, in Markdown."""
    recipe, source, recent = run.recipe, run.recipe.source, run.losses[-50:]
    origin = "from random weights" if recipe.parent is None else "from the weights of"
    origin = "taught by" if recipe.objective == "distilled" else origin
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            recipe.summary,
            "",
            f"- parameters: {parameters:,} (embeddings tied), stored in bfloat16",
            f"- architecture: Marian, {recipe.encoder_layers} encoder and {recipe.decoder_layers} decoder layers of "
            f"width {recipe.width}; runs through transformers",
            f"- objective: {recipe.objective}, {origin}" + (f" `{recipe.parent}`" if recipe.parent else ""),
            f"- steps: {run.step:,} of {run.steps:,}, {run.epochs:.1f} epochs, seed {run.seed}",
            f"- trained on: {run.device}, {run.seconds / 60:.0f} minutes, exported {run.date}",
            f"- loss, mean of the last {len(recent)} steps: {sum(recent) / max(len(recent), 1):.3f} nats per token",
            f"- command: `outpace train {recipe.name} --steps {run.steps} --seed {run.seed}`",
            "",
            "![loss](loss.png)",
            "",
            "## Data",
            "",
            "| source | used | origin | licence | pairs | tokens |",
            "|---|---|---|---|---|---|",
            f"| {source.name} | {source.note} | {source.origin} | {source.licence} | {run.pairs:,} | {run.tokens:,} |",
            "",
            f"A share of {recipe.joined:.0%} of the pairs was made by joining two or three others.",
            "Held out: the splits `valid` and `test`.",
            "",
            "## Licence and limits",
            "",
            _licence(recipe),
            "A test and teaching model: it gets much wrong, and it must not be relied on for anything.",
            "",
        ]
    )


def _licence(recipe: TranslationRecipe) -> str:
    if "research" in recipe.source.licence:
        return "The texts are for research only: neither they nor these weights may be passed on."
    return (
        "The weights ship under Apache-2.0 as part of Outpace; the texts keep the licence above "
        "(attribution: tatoeba.org and www.manythings.org/anki)."
    )
