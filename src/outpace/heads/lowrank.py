"""Low-rank factors beside a target's matrices, trained together with masks: for all tokens, or at masks alone.

Papers: Yi et al. (2024), arXiv 2402.11809, SPACE: the target itself is tuned to fill masks (all tokens pass the
factors; merged, they make another model, whose plain decoding is what drafts are checked against). Samragh et al.
(2025), arXiv 2507.11851: gated LoRA, where only masks pass the factors, so that everything else is as it was, and a
small sampler that reads a mask's state and the token before its place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.errors import CapabilityError, ConfigError
from outpace.heads.gated import GatedTarget
from outpace.heads.model import HeadModel, new_head
from outpace.heads.net import Batch, Frozen, HeadConfig, Lesson
from outpace.heads.probe import ProbeNet, probe_lesson, sow
from outpace.types import Adapter, Scores

__all__ = ["GatedLoraNet", "LowRankNet", "SpaceNet", "own_masks"]

_SCALE = 2.0  # alpha / rank
_BLOCK_LEVELS = 8  # of a group that is a block: its masks behind the first


class Factors(nn.Module):
    """Two factors of a change to a matrix [outputs, inputs]; begun as no change."""

    def __init__(self, outputs: int, inputs: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Linear(inputs, rank, bias=False)
        self.lora_B = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the product, [..., outputs]."""
        found: Tensor = self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype))) * _SCALE
        return found


class LowRankNet(ProbeNet):
    """Masks, and factors beside every matrix of the target's layers (settings: depth, rank)."""

    is_shared: ClassVar[bool] = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.lora = nn.ModuleList()
        self._make(config.settings.get("sizes", {}))

    def _make(self, sizes: dict[str, list[int]]) -> None:
        rank = int(self.config.settings["rank"])
        for _ in range(self.config.num_layers if sizes else 0):
            self.lora.append(nn.ModuleDict({name: Factors(size[0], size[1], rank) for name, size in sizes.items()}))

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; the factors' sizes are learned from the target before training (`begin`)."""
        rank = int(settings.pop("rank", 8))
        if rank < 1:
            raise ConfigError(f"rank is {rank}.", "Use 1 or more.")
        base = super().made_for(hidden_size, vocab_size, num_layers, target, **settings)
        return replace(base, settings={**base.settings, "rank": rank})

    def begin(self, frozen: Frozen) -> None:
        """Begin the mask, and make factors for the matrices that the target turns out to have."""
        super().begin(frozen)
        sizes: dict[str, list[int]] = {}

        def note(name: str, layer: int, x: Tensor, out: Tensor) -> Tensor:
            del layer
            sizes[name] = [out.shape[-1], x.shape[-1]]
            return out

        one = torch.ones(1, 1, dtype=torch.int64)
        with torch.no_grad():
            frozen.forward(frozen.embed(one), one * 0, one.view(1, 1, 1) > 0, hook=note)
        self.config = replace(self.config, settings={**self.config.settings, "sizes": sizes})
        self._make(sizes)

    def gate(self, is_soft: Tensor) -> Tensor | float:
        """Return how much of the change each token gets."""
        del is_soft
        return 1.0

    def hook(self, is_soft: Tensor) -> Any:
        """Return what adds the factors' change to the target's products."""
        gate = self.gate(is_soft)

        def change(name: str, layer: int, x: Tensor, out: Tensor) -> Tensor:
            found: Tensor = out + (self.lora[layer][name](x) * gate).to(out.dtype)  # type: ignore[index]
            return found

        return change


class SpaceNet(LowRankNet):
    """The factors tune the target for masks; they are written beside the drafter as an adapter for it (PEFT's form)."""

    kind: ClassVar[str] = "space"

    def loss(self, batch: Batch) -> Lesson:
        """Return the loss at masks, and of the tuned target's own next tokens against what it said before."""
        sown = sow(self, batch)
        hidden, _ = batch.frozen.forward(sown.inputs, sown.position, sown.visible, hook=self.hook(sown.is_soft))
        logits = batch.frozen.logits(sown.masks(hidden)).mean(-2)
        lesson = probe_lesson([logits[..., k, :] for k in range(self.config.depth)], sown, batch)
        follows = torch.zeros_like(batch.is_taught)
        follows[:, :-1] = batch.is_taught[:, 1:]
        own = batch.frozen.logits(hidden[:, : batch.tokens.shape[1]][follows]).float()
        law = batch.frozen.logits(batch.last[follows]).float().softmax(-1)
        plain = -(law * own.log_softmax(-1)).sum(-1).mean()
        parts = {"masks": float(lesson.loss.detach()), "plain": float(plain.detach())}
        return replace(lesson, loss=lesson.loss + plain, parts=parts)

    def write_beside(self, directory: Path) -> None:
        """Write the factors as an adapter for the target."""
        tensors = {}
        for layer, part in enumerate(self.lora):
            for name, factors in part.items():  # type: ignore[operator]
                room = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
                for factor in ("lora_A", "lora_B"):
                    key = f"base_model.model.model.layers.{layer}.{room}.{name}.{factor}.weight"
                    tensors[key] = getattr(factors, factor).weight.detach().float().contiguous()
        if not tensors:
            return
        rank = int(self.config.settings["rank"])
        told = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": _SCALE * rank,
            "target_modules": sorted(self.config.settings["sizes"]),
            "base_model_name_or_path": self.config.target,
            "bias": "none",
        }
        save_file(tensors, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


class Sampler(nn.Module):
    """Two blocks over a mask's state and the embedding of the token before its place; begun as no change."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2 * size, size), nn.Linear(size, size)])
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.out = nn.Linear(size, size, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, states: Tensor, before: Tensor) -> Tensor:
        """Return what the target's output matrix reads, [..., hidden]."""
        x = torch.cat([states, before], -1)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = norm(F.silu(block(x)))
        found: Tensor = states + self.out(x)
        return found


class GatedLoraNet(LowRankNet):
    """The factors act at masks alone, and a sampler chooses from their states (settings: depth, rank)."""

    kind: ClassVar[str] = "gated-lora"

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.sampler = Sampler(config.hidden_size)

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration: the last hidden state of masks is read."""
        return replace(super().made_for(hidden_size, vocab_size, num_layers, target, **settings), has_last=True)

    def gate(self, is_soft: Tensor) -> Tensor | float:
        """Return 1 at masks, 0 elsewhere."""
        return is_soft

    def loss(self, batch: Batch) -> Lesson:
        """Return the loss of masks by themselves and through the sampler, and how far their states are off.

        The state of a mask is drawn to the one that the target has where all tokens before are known (the paper's
        consistency loss).
        """
        sown = sow(self, batch)
        hidden, _ = batch.frozen.forward(sown.inputs, sown.position, sown.visible, hook=self.hook(sown.is_soft))
        states = sown.masks(hidden).mean(-2).float()  # [B, A, D, hidden]
        depth, size = self.config.depth, batch.tokens.shape[1]
        at = (sown.place.unsqueeze(-1) + 1 + torch.arange(depth, device=sown.place.device)).clamp(max=size - 1)
        before = batch.tokens.gather(1, at.flatten(1)).view(at.shape)
        logits = batch.frozen.logits(self.sampler(states, batch.frozen.embed(before)))
        lesson = probe_lesson([logits[..., k, :] for k in range(depth)], sown, batch)
        plain = batch.frozen.logits(states)
        base = probe_lesson([plain[..., k, :] for k in range(depth)], sown, batch).loss
        known = batch.last.gather(1, at.flatten(1).unsqueeze(-1).expand(-1, -1, states.shape[-1])).view(states.shape)
        off = F.mse_loss(states, known)
        parts = {"sampler": float(lesson.loss.detach()), "base": float(base.detach()), "states": float(off.detach())}
        return replace(lesson, loss=lesson.loss + base + off, parts=parts)

    def read(self, scores: Scores, index: Sequence[int], row: int) -> Tensor:
        """Return the states of a group's masks, [levels, hidden]."""
        assert scores.last is not None  # it was asked for
        return scores.last[row, list(index)]

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K] by the state of the level and the last token of the path."""
        states = slots.gather(1, depth.unsqueeze(-1).expand(-1, -1, slots.shape[-1]))
        last = path.gather(2, (path >= 0).sum(-1, keepdim=True) - 1).squeeze(-1)
        return model.logits(self.sampler(states, model.embed(last.clamp(min=0))))

    def beside(self, target: Adapter) -> Adapter:
        """Return the target with the factors at masks."""
        factors: Any = self.lora  # of modules that are called
        return GatedTarget.around(target, self.masks.weight, factors) if len(self.lora) else target


def own_masks(target: Adapter) -> HeadModel:
    """Return the drafter of the kind `space` that a target is to itself, which was taught to fill a mask of its own.

    One that was taught blocks in both directions gets groups that are such blocks.

    Raises:
        CapabilityError: it names no mask token, or is no target of such a drafter.
    """
    is_block = target.mask_token is None
    token = target.own_mask if is_block else target.mask_token
    if token is None:
        raise CapabilityError("The model names no mask token.", "Train one that does: outpace train stories-sets.")
    model = new_head("space", target, **({"prompts": 1, "depth": _BLOCK_LEVELS} if is_block else {}))
    assert isinstance(model.net, SpaceNet)
    model.net.is_block = is_block
    mask = target.embed(torch.tensor([[token]], device=target.device))[0]
    model.net.masks.weight.copy_(mask)
    if model.net.prompts is not None:
        model.net.prompts.weight.copy_(mask)
    return model
