"""Weights kept along a run: the mean of the last ones is exported, and all of them tell how the run went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from outpace.train import checkpoint

__all__ = [
    "averaged",
    "deepened",
    "drop_others",
    "keep_snapshot",
    "load_snapshot",
    "recent_snapshots",
    "snapshots",
]


def snapshots(out: Path) -> list[tuple[int, Path]]:
    """Return (step, file) of the weights that a run has kept, by step."""
    return sorted((int(path.stem), path) for path in (out / "snapshots").glob("*.pt"))


def recent_snapshots(out: Path, step: int, every: int, most: int) -> list[Path]:
    """Return the files of a step and of the checkpoints before it, `most` in all."""
    # Only steps that this run must have passed: an earlier run may have left files in the same directory.
    wanted = {step, *range(every, step, every)}
    return [path for found, path in snapshots(out) if found in wanted][-most:]


def keep_snapshot(network: nn.Module, out: Path, step: int) -> None:
    """Keep the weights of a step.

    Raises:
        StorageError: When the disk is full.
    """
    checkpoint.save({"network": network.state_dict()}, out / "snapshots" / f"{step:06d}.pt")


def drop_others(out: Path, kept: Sequence[Path]) -> None:
    """Remove all kept weights but those."""
    for _, path in snapshots(out):
        if path not in kept:
            path.unlink()


def averaged(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of kept weights (checkpoint averaging: Vaswani et al., 2017, section 6.1).

    It helps where the weights move little between them, late in a run; the mean of distant ones is worse than the last.

    Raises:
        ConfigError: When one is missing.
        ModelError: When one is damaged.
    """
    mean: dict[str, Tensor] = {}
    for count, path in enumerate(paths, 1):
        for name, weight in checkpoint.load(path)["network"].items():
            if name not in mean or not weight.is_floating_point():
                mean[name] = weight.clone()
            else:
                mean[name].lerp_(weight, 1 / count)
    return mean


def load_snapshot(network: nn.Module, path: Path) -> None:
    """Put kept weights into a network.

    Raises:
        ConfigError: When the file is missing.
        ModelError: When it is damaged.
    """
    network.load_state_dict(checkpoint.load(path)["network"])


def deepened(parent: nn.Module, network: nn.Module) -> dict[str, Tensor]:
    """Return weights for `network` from a parent of other depth: its layers in order, each as often as there is room.

    Stacking trained layers starts a deep network well (Gong et al., 2019, "Efficient training of BERT by progressively
    stacking"). Layers are told by names such as "encoder.layers.3."; both networks are of one kind and width.
    """
    source, wanted = parent.state_dict(), network.state_dict()
    held, needed = _depths(source), _depths(wanted)
    return {name: source[_place(name, held, needed)] for name in wanted}


def _depths(names: Sequence[str] | dict[str, Tensor]) -> dict[str, int]:
    depths: dict[str, int] = {}
    for name in names:
        stack, dot, rest = name.partition(".layers.")
        if dot:
            depths[stack] = max(depths.get(stack, 0), int(rest.split(".")[0]) + 1)
    return depths


def _place(name: str, held: dict[str, int], needed: dict[str, int]) -> str:
    stack, dot, rest = name.partition(".layers.")
    if not dot:
        return name
    index, _, within = rest.partition(".")
    return f"{stack}.layers.{int(index) * held[stack] // needed[stack]}.{within}"
