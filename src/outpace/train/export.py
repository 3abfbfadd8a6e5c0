"""Writing a trained network as a Hugging Face directory with a card."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer

from outpace.errors import ModelError

from .data import EOS_ID, MASK, MASK_ID
from .network import Llama, Shape, hf_config
from .recipes import Recipe
from .sources import END


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the card tells of a training run.

    Attributes:
        recipe: The settings.
        step: Steps done.
        steps: Steps planned.
        tokens: Tokens seen, repeats included.
        seed: The seed.
        losses: Loss of each step, in nats per token.
        seconds: Time in steps.
        device: `cpu` or `cuda`.
        date: Day of the export, ISO.
        stream_tokens: Tokens in each source.
    """

    recipe: Recipe
    step: int
    steps: int
    tokens: int
    seed: int
    losses: tuple[float, ...]
    seconds: float
    device: str
    date: str
    stream_tokens: tuple[int, ...]


def export(network: Llama, tokenizer: Tokenizer, run: Run, out: Path) -> None:
    """Write config, bfloat16 weights, tokenizer, generation settings, card and loss curve to `out`."""
    weights = {name: weight.detach().to("cpu", torch.bfloat16) for name, weight in network.state_dict().items()}
    part = out / "model.safetensors.part"
    # Written by hand, since save_file makes a file that only its owner may read.
    part.write_bytes(save(weights, metadata={"format": "pt"}))
    part.replace(out / "model.safetensors")
    write_json(out / "config.json", hf_config(network.shape, eos_id=EOS_ID, mask_id=MASK_ID))
    write_json(out / "generation_config.json", {"bos_token_id": EOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID})
    write_json(out / "tokenizer_config.json", _tokenizer_config(network.shape.context))
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "card.md").write_text(card(run, sum(weight.numel() for weight in weights.values())), encoding="utf-8")
    if run.step == run.steps:
        draw_losses(run.losses, out / "loss.png")


def load_network(directory: Path) -> Llama:
    """The training network of a zoo directory, in float32.

    Raises:
        ModelError: When a file is missing.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        weights = load_file(directory / "model.safetensors")
    except FileNotFoundError as error:
        raise ModelError(
            f"{directory} is no model of the zoo", "Give a directory that `outpace train` wrote."
        ) from error
    network = Llama(
        Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            ffn=config["intermediate_size"],
            vocab=config["vocab_size"],
            context=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            eps=config["rms_norm_eps"],
            causal=config["model_type"] == "llama",
            block=config.get("block_length", 0),
            shifted=config.get("logits_shift", False),
        )
    )
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return network.eval()


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a zoo directory.

    Raises:
        ModelError: When there is none.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{directory} holds no tokenizer.json", "Give one that `outpace train` wrote.")
    return Tokenizer.from_file(str(path))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _tokenizer_config(context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "mask_token": MASK,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }


def card(run: Run, parameters: int) -> str:
    """The model card, in Markdown."""
    recipe = run.recipe
    recent = run.losses[-50:]
    rows = [
        f"| {source.name} | {source.note} | {source.origin} | {source.licence} | {tokens:,} | {source.weight:.0%} |"
        for source, tokens in zip(recipe.sources, run.stream_tokens, strict=True)
    ]
    origin = "taught by" if recipe.objective == "distilled" else "from the weights of"
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            recipe.summary,
            "",
            f"- parameters: {parameters:,} (embeddings tied), stored in bfloat16",
            f"- objective: {recipe.objective}, "
            + (f"{origin} `{recipe.parent}`" if recipe.parent else "from random weights"),
            f"- steps: {run.step:,} of {run.steps:,}, {run.tokens:,} tokens, seed {run.seed}",
            f"- trained on: {run.device}, {run.seconds / 60:.0f} minutes, exported {run.date}",
            f"- loss, mean of the last {len(recent)} steps: {sum(recent) / max(len(recent), 1):.3f} nats per token",
            f"- command: `outpace train {recipe.name} --steps {run.steps} --seed {run.seed}`",
            "",
            "![loss](loss.png)",
            "",
            "## Data",
            "",
            f"The library is that of Python {platform.python_version()}; another version gives other token counts.",
            "",
            "| source | used | origin | licence | tokens | share of rows |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Held out: TinyStories' `valid.txt`, about 4% of the library's files, MBPP's test split.",
            "",
            "## Licence and limits",
            "",
            "The weights ship under Apache-2.0 as part of Outpace; the texts keep the licences above.",
            "A test and teaching model: it knows nothing, it invents, and it must not be relied on for anything.",
            "",
        ]
    )


def draw_losses(losses: tuple[float, ...], path: Path) -> None:
    """Draw the loss curve; does nothing where matplotlib is not installed, since the card is whole without it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    smooth, curve = losses[0], []
    for loss in losses:
        smooth += 0.05 * (loss - smooth)
        curve.append(smooth)
    figure = Figure(figsize=(6, 3.2), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, color="#c8d4e3", linewidth=0.6)
    axes.plot(curve, color="#1f4e79", linewidth=1.4)
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=(min(curve) * 0.85, max(curve[20:] or curve) * 1.1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
