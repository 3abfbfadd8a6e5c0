"""The card of a trained drafter, and its curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outpace.train.drafter.trainer import DrafterTrainer

__all__ = ["draw_curves", "write_card"]


def write_card(trainer: DrafterTrainer, out: Path) -> None:
    """Write `card.md`, and `curves.png` where matplotlib is installed and two looks were taken."""
    config, recipe = trainer.network.config, trainer.recipe
    parameters = sum(weight.numel() for weight in trainer.network.parameters())
    lines = [
        f"# {recipe.name}",
        "",
        recipe.summary,
        "",
        f"- parameters: {parameters:,}, stored in bfloat16; embeddings and output matrix are the target's",
        f"- kind: {config.kind}, target: `{config.target}`",
        f"- objective: drafter, of `{config.target}`",
        f"- depth: {config.depth}, tokens that it drafts: {config.draft_vocab or config.vocab_size:,} "
        f"of {config.vocab_size:,}",
        f"- settings: {dict(config.settings) or 'none'}",
        f"- steps: {trainer.step:,} of {trainer.steps:,}, {trainer.tokens_per_step:,} tokens each, seed {trainer.seed}",
        f"- trained on: {trainer.device.type}, {trainer.seconds / 60:.0f} minutes, {datetime.now(UTC).date()}",
        f"- texts: {len(trainer.texts):,} that the target wrote itself{trainer.origin}",
    ]
    if trainer.curves:
        last = trainer.curves[-1]
        accepted = ", ".join(f"{number:.2f}" for number in last["accepted"])
        hits = ", ".join(f"{100 * share:.1f}%" for share in last["hits"])
        lines += [
            f"- held-out texts: loss {last['loss']:.3f} nats, hits per depth {hits}",
            f"- accepted tokens of a greedy chain, by its length: {accepted}",
        ]
    if draw_curves(trainer.curves, recipe.name, out / "curves.png"):
        lines += ["", "![curves](curves.png)"]
    (out / "card.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def draw_curves(curves: Sequence[dict[str, Any]], title: str, path: Path) -> bool:
    """Draw loss, hits and accepted length along the steps; return False where there is nothing to draw."""
    if len(curves) < 2:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10.4, 3.4), dpi=100, layout="constrained")
    steps = [one["step"] for one in curves]
    loss, hits, accepted = figure.subplots(1, 3)
    loss.plot(steps, [one["loss"] for one in curves], color="#1b6ca8", label="held out")
    loss.plot(steps[1:], [one["train_loss"] for one in curves[1:]], color="#999999", label="trained on")
    loss.set_ylabel("loss (nats)")
    loss.legend(fontsize=8)
    for depth in range(len(curves[-1]["hits"])):
        shade = 0.9 - 0.6 * depth / max(1, len(curves[-1]["hits"]) - 1)
        hits.plot(steps, [one["hits"][depth] for one in curves], color="#1b6ca8", alpha=shade, label=str(depth + 1))
        accepted.plot(steps, [one["accepted"][depth] for one in curves], color="#3a8f5c", alpha=shade)
    hits.set_ylabel("share guessed, by depth")
    hits.legend(fontsize=7, ncols=2)
    accepted.set_ylabel("tokens accepted, by chain length")
    for axes in (loss, hits, accepted):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path)
    return True
