"""Multi-token modules that are trained here: one decoder layer each over (state, next token) pairs.

Papers: DeepSeek-AI (2024), arXiv 2412.19437, section 2.2 (modules one after the other); Cai et al. (2025), arXiv
2509.18362, FastMTP (one module for all steps, trained over several of them as it drafts). Tensors are named as those of
transformers' generic module. Modules that lie in a target's own files are read by `outpace.heads.stored`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.errors import ConfigError
from outpace.heads.decoder import Layer, Masked, Norm, Shape, Turns, Unrolled, shape_settings
from outpace.heads.draft import HeadDrafter
from outpace.heads.model import HeadModel
from outpace.heads.modules import Module, ModuleDrafter, Modules
from outpace.heads.net import Batch, HeadConfig, HeadNet, Lesson, shifted
from outpace.heads.slots import slot_lesson
from outpace.models.spec import Spec
from outpace.models.transformer import Transformer
from outpace.models.weights import LayerWeights, Matrix, Weights
from outpace.models.weights import Norm as StoredNorm
from outpace.types import Context

__all__ = ["FastMtpNet", "MtpNet"]


class Part(nn.Module):
    """One module: two norms, a projection of both side by side, a layer, and the norm behind it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.enorm, self.hnorm = Norm(shape.hidden, shape.eps), Norm(shape.hidden, shape.eps)
        self.eh_proj = nn.Linear(2 * shape.hidden, shape.hidden, bias=False)
        self.mtp_block = Layer(shape, 0)
        self.post_norm = Norm(shape.hidden, shape.eps)


class MtpNet(HeadNet):
    """Settings: depth, modules, hidden_first, zero_first (see `Modules`), decay, and those of its layers.

    `decay` is the weight of a step in the loss over that of the step before it. One module learns `depth` steps as it
    drafts them; of several, each learns its own.
    """

    kind: ClassVar[str] = "mtp"
    own: ClassVar[dict[str, Any]] = {"modules": 1, "hidden_first": False, "zero_first": False, "decay": 1.0}
    usual_depth: ClassVar[int] = 1

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        settings = {**shape_settings(config.hidden_size), **self.own, **config.settings}
        self.shape, self.turns = Shape.of(config.hidden_size, settings), Turns(settings, int(settings["head_dim"]))
        self.decay = float(settings["decay"])
        self.layers = nn.ModuleList(Part(self.shape) for _ in range(int(settings["modules"])))
        self._made: dict[tuple[torch.dtype, torch.device], Modules] = {}

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; see the class for its settings.

        Raises:
            ConfigError: no module, or a setting that the kind does not have.
        """
        known = {**shape_settings(hidden_size), **cls.own}
        own = {name: settings.pop(name) for name in list(settings) if name in known}
        if int(own.get("modules", 1)) < 1:
            raise ConfigError(f"{own['modules']} modules were asked for.", "Use 1 or more.")
        depth = settings.pop("depth", max(cls.usual_depth, int(own.get("modules", 1))))
        base = super().made_for(hidden_size, vocab_size, num_layers, target, depth=depth, **settings)
        return HeadConfig(**{**base.to_dict(), "layers": (), "settings": own})

    def steps(self, batch: Batch) -> list[Tensor]:
        """Return per step the states [B, T, hidden] from which it drafts the token two places on.

        At step s, place t reads token t + 1 and what step s - 1 made of place t - 1: the draft is s + 1 tokens behind
        a text that ends at t + 1 - s. One module sees the text up to there and its own steps after it, as it drafts.
        """
        rows, size = batch.tokens.shape
        own, device = self._conventions(), batch.tokens.device
        token, _ = shifted(batch.tokens, 1)
        embedded, states, found = batch.frozen.embed(token), batch.last, []
        position = torch.arange(size, device=device).expand(rows, -1)
        causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        unrolled = Unrolled(rows, size, device)
        turns = self.turns.at(position, states)
        for step in range(self.num_steps):
            part: Part = self.layers[step % len(self.layers)]  # type: ignore[assignment]
            states = F.pad(states, (0, 0, 1, 0))[:, :size] if step else states
            unrolled.advance()
            # The first pair of a text is that of place s at step s, where modules take turns: nothing lies before it.
            is_pair = (position[0] >= step) | torch.eye(size, dtype=torch.bool, device=device)
            sight = unrolled if len(self.layers) == 1 else Masked(position, causal & is_pair)
            is_first = position - step if len(self.layers) > 1 else position + step
            pair = Modules.inputs(own, _shell(part), embedded, states, is_first)
            states = part.post_norm(part.mtp_block(pair, self.turns, turns, sight))
            found.append(states)
        return found

    @property
    def num_steps(self) -> int:
        """Steps that are trained."""
        return self.config.depth if len(self.layers) == 1 else min(self.config.depth, len(self.layers))

    def loss(self, batch: Batch) -> Lesson:
        """Cross-entropy of every step against the text, steps weighted by `decay`."""
        logits = [
            batch.frozen.logits(F.pad(states, (0, 0, 0, step))[:, step:])
            for step, states in enumerate(self.steps(batch))
        ]
        return slot_lesson(logits, batch, self.decay)

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter that runs the modules one after the other."""
        return ModuleDrafter.begin_with(model, context)

    def modules_for(self, model: HeadModel) -> Modules:
        """Return the modules with their layers as native decoders, which are made once."""
        key = model.dtype, model.device
        if key not in self._made:
            parts = tuple(_shell(part, self._body(part, model)) for part in self.layers)  # type: ignore[arg-type]
            self._made[key] = replace(self._conventions(), parts=parts)
        return self._made[key]

    def _conventions(self) -> Modules:
        settings = {**self.own, **self.config.settings}
        return Modules((), bool(settings["hidden_first"]), bool(settings["zero_first"]))

    def _body(self, part: Part, model: HeadModel) -> Transformer:
        """Return a native decoder of one layer, which shares the network's weights where it does not pack them."""
        shape, block = self.shape, part.mtp_block
        spec = Spec(
            vocab_size=1,
            hidden_size=shape.hidden,
            num_layers=1,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            ffn_size=shape.ffn,
            max_positions=model.capabilities.max_positions,
            norm_eps=shape.eps,
            ropes=(self.turns.rope,),
            qkv_bias=shape.attention_bias,
            mlp_bias=shape.mlp_bias,
            qk_norm="head" if shape.has_head_norm else "none",
        )
        attention, mlp = block.self_attn, block.mlp
        layer = LayerWeights(
            qkv=_joined(attention.q_proj, attention.k_proj, attention.v_proj, has_bias=shape.attention_bias),
            o=_joined(attention.o_proj),
            up=_joined(mlp.gate_proj, mlp.up_proj, has_bias=shape.mlp_bias),  # type: ignore[arg-type]
            down=_joined(mlp.down_proj, has_bias=shape.mlp_bias),  # type: ignore[arg-type]
            attn_norm=StoredNorm(block.input_layernorm.weight),
            mlp_norm=StoredNorm(block.post_attention_layernorm.weight),
        )
        if shape.has_head_norm:
            layer.q_norm, layer.k_norm = attention.q_norm.weight, attention.k_norm.weight
        return one_layer(spec, layer, part.post_norm.weight)


class FastMtpNet(MtpNet):
    """One module for all steps, trained over several of them; settings as of `MtpNet`."""

    kind: ClassVar[str] = "fastmtp"
    own: ClassVar[dict[str, Any]] = {**MtpNet.own, "decay": 0.6}
    usual_depth: ClassVar[int] = 4

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; see the class for its settings.

        Raises:
            ConfigError: more than one module, or a setting that the kind does not have.
        """
        if int(settings.get("modules", 1)) != 1:
            raise ConfigError("FastMTP has one module.", "Train the kind 'mtp' for several.")
        return super().made_for(hidden_size, vocab_size, num_layers, target, **settings)


def one_layer(spec: Spec, layer: LayerWeights, norm: Tensor | None) -> Transformer:
    """Return a decoder of one layer with soft inputs, whose output matrix is a single row that nobody reads.

    Args:
        spec: of one layer and one token.
        layer: its weights.
        norm: scale of the norm behind it; None = there is none.
    """
    like = layer.attn_norm.weight if layer.attn_norm is not None else None
    assert like is not None  # every family's layers that carry modules are normed first
    width, dtype, device = spec.hidden_size, layer.qkv.dense().dtype, like.device
    row = torch.zeros(1, width, dtype=dtype, device=device)
    final = None if norm is None else StoredNorm(norm)
    return Transformer(spec, Weights(embed=row, layers=[layer], head=Matrix(row.clone()), final_norm=final))


def _shell(part: Part, body: Any = None) -> Module:
    return Module(part.enorm, part.hnorm, part.eh_proj, body)


def _joined(*parts: nn.Linear, has_bias: bool = False) -> Matrix:
    """Return matrices one below the other."""
    bias = torch.cat([part.bias.detach() for part in parts]) if has_bias else None
    return Matrix(torch.cat([part.weight.detach() for part in parts]), bias)
