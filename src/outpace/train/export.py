"""Writing a trained network as a Hugging Face directory with a card, and reading one again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

from outpace.errors import ModelError

from .data import MASK
from .network import Llama, shape_of
from .sources import END

if TYPE_CHECKING:
    from .loop import Loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What the files of one kind of network say.

    Attributes:
        weights: Those that the file needs; they are stored in bfloat16, whole numbers as they are.
        config: The `config.json`.
        generation: The `generation_config.json`; its `bos_token_id` starts a text.
        context: Most positions, in tokens.
        facts: Lines of the card, between parameters and objective.
        seen: How much of the data was seen, for the card.
        data: Lines of the card's section on data.
        licence: Lines of its last section.
    """

    weights: Mapping[str, Tensor]
    config: dict[str, Any]
    generation: dict[str, Any]
    context: int
    facts: Sequence[str] = ()
    seen: str
    data: Sequence[str]
    licence: Sequence[str]


def write_model(loop: Loop, told: Export, out: Path) -> None:
    """Write config, bfloat16 weights, tokenizer, generation settings, card and loss curve to `out`."""
    weights = {name: _stored(weight) for name, weight in told.weights.items()}
    part = out / "model.safetensors.part"
    # Written by hand, since save_file makes a file that only its owner may read.
    part.write_bytes(save(weights, metadata={"format": "pt"}))
    part.replace(out / "model.safetensors")
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": loop.tokenizer.id_to_token(told.generation["bos_token_id"]),
        "eos_token": END,
        "pad_token": END,
        "mask_token": MASK,
        "model_max_length": told.context,
        "clean_up_tokenization_spaces": False,
    }
    for file, value in (("config", told.config), ("generation_config", told.generation), ("tokenizer_config", names)):
        (out / f"{file}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    loop.tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    parameters = sum(weight.numel() for weight in weights.values())
    (out / "card.md").write_text(_card(loop, told, parameters), encoding="utf-8")
    if loop.step == loop.steps:
        _draw_losses(loop.losses, out / "loss.png")


def _stored(weight: Tensor) -> Tensor:
    """Return a weight as files hold it; whole numbers, such as ids of a table, stay what they are."""
    dtype = torch.bfloat16 if weight.is_floating_point() else weight.dtype
    return weight.detach().to("cpu", dtype).contiguous()


def load_network(directory: Path) -> Llama:
    """The training network of a zoo directory, in float32.

    Raises:
        ModelError: When a file is missing, or it holds a network of another kind.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        weights = load_file(directory / "model.safetensors")
    except FileNotFoundError as error:
        raise ModelError(
            f"{directory} is no model of the zoo", "Give a directory that `outpace train` wrote."
        ) from error
    try:
        network = Llama(shape_of(config))
    except KeyError as error:
        raise ModelError(f"{directory} holds no Llama: {error} is not told", "Give one of the zoo's.") from error
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


def _card(loop: Loop, told: Export, parameters: int) -> str:
    """The model card, in Markdown."""
    recipe, recent = loop.recipe, loop.losses[-50:]
    origins = {"distilled": "taught by", "written": "taught by", "reconstruction": "beside"}
    origin = origins.get(recipe.objective, "from the weights of")
    day = datetime.now(UTC).date().isoformat()
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            recipe.summary,
            "",
            f"- parameters: {parameters:,} (embeddings tied), stored in bfloat16",
            *told.facts,
            f"- objective: {recipe.objective}, "
            + (f"{origin} `{recipe.parent}`" if recipe.parent else "from random weights"),
            f"- steps: {loop.step:,} of {loop.steps:,}, {told.seen}, seed {loop.seed}",
            f"- trained on: {loop.device.type}, {loop.seconds / 60:.0f} minutes, exported {day}",
            f"- loss, mean of the last {len(recent)} steps: {sum(recent) / max(len(recent), 1):.3f} nats per token",
            f"- command: `outpace train {recipe.name} --steps {loop.steps} --seed {loop.seed}`",
            "",
            "![loss](loss.png)",
            "",
            "## Data",
            "",
            *told.data,
            "",
            "## Licence and limits",
            "",
            *told.licence,
            "",
        ]
    )


def _draw_losses(losses: Sequence[float], path: Path) -> None:
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
