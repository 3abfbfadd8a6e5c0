"""The two stacks of a one-pass network on compiled kernels: the same sums as `NarNet.encode`, `decode` and `head`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from outpace.models.editing.encoder import Layer
from outpace.models.kernel_contract import Kernels
from outpace.models.seq2seq.adapter import EncoderDecoder
from outpace.models.seq2seq.pair import PairSpec
from outpace.models.spec import Spec
from outpace.models.weights import CrossWeights, LayerWeights, Matrix, Norm, Weights
from outpace.types import Outputs

from .network import NarNet, Pass

__all__ = ["Compiled", "compile_net"]

_STATES = Outputs(has_last=True, has_logits=False)


class Compiled:
    """What runs the layers of a network in place of its own modules.

    Args:
        both: the encoder and the decoder.
    """

    def __init__(self, both: EncoderDecoder) -> None:
        self.both = both

    def encode(self, sources: Tensor, is_real: Tensor) -> Tensor:
        """Return the states [B, S, W] of sources [B, S]."""
        position = torch.where(is_real, torch.arange(sources.shape[1], device=sources.device), -1)
        scratch = self.both.encoder.new_scratch(*sources.shape)
        states = self.both.encoder.score(sources, position, None, scratch, outputs=_STATES).last
        assert states is not None
        return states

    def decode(self, run: Pass) -> Tensor:
        """Return the last states [B, L, W] of the places."""
        rows, size = run.is_place.shape
        position = torch.where(run.is_place, torch.arange(size, device=run.is_place.device), -1)
        scratch = self.both.new_scratch(rows, size)
        scratch.extra = [run.is_real.sum(1, keepdim=True), *self.both.entries(run.states)]
        tokens = position.clamp(min=0, max=0)
        states = self.both.score(tokens, position, None, scratch, outputs=_STATES, inputs=run.inputs).last
        assert states is not None
        return states

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V + extra symbols] of last states [..., W]."""
        return self.both.head(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:-1], -1)


def compile_net(net: NarNet, kernels: Kernels) -> Compiled | None:
    """Return the stacks of a network on compiled kernels; None where they do not serve it.

    The network's own weights stay as they are: kinds read tables and projections of their own from them.
    """
    if net.own_layers or not all(type(layer) is Layer for layer in (*net.encoder, *net.decoder)):
        return None
    pair = _pair(net)
    if not (kernels.supports(pair.encoder) and kernels.supports(pair.decoder)):
        return None
    both = EncoderDecoder(pair, _weights(net, False), _weights(net, True), pack=False)
    return Compiled(both) if both.compile(kernels, pack=False) else None


def _pair(net: NarNet) -> PairSpec:
    config = net.config

    def side(layers: int, positions: int, has_cross: bool) -> Spec:
        return Spec(
            vocab_size=len(net.embed_tokens.weight),
            hidden_size=config.width,
            num_layers=layers,
            num_heads=config.heads,
            num_kv_heads=config.heads,
            head_dim=config.width // config.heads,
            ffn_size=config.ffn,
            max_positions=positions,
            norm="layer",
            norm_eps=net.encoder_norm.eps,
            has_norm_bias=True,
            activation="relu",
            is_gated=False,
            positions="learned",
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
            attention="full",
            has_cross=has_cross,
        )

    encoder = side(config.encoder_layers, config.max_source, False)
    decoder = side(config.decoder_layers, config.max_positions, True)
    return PairSpec(encoder=encoder, decoder=decoder, start_token=config.start_token)


def _weights(net: NarNet, is_decoder: bool) -> Weights:
    """Return copies of one side's weights; the encoder has no head."""
    table = net.embed_tokens.weight.detach()
    layers, norm = (net.decoder, net.decoder_norm) if is_decoder else (net.encoder, net.encoder_norm)
    positions = net.place_positions if is_decoder else net.source_positions
    return Weights(
        embed=table.clone(),
        layers=[_layer(layer) for layer in layers if isinstance(layer, Layer)],
        head=Matrix(table.clone() if is_decoder else table.new_empty(0, table.shape[1])),
        final_norm=_norm(norm),
        positions=positions.weight.detach().clone(),
    )


def _layer(layer: Layer) -> LayerWeights:
    before_attention, before_mlp, *before_cross = layer.norms
    made = LayerWeights(
        qkv=_matrix(layer.qkv),
        o=_matrix(layer.out),
        up=_matrix(layer.up),
        down=_matrix(layer.down),
        attn_norm=_norm(before_attention),
        mlp_norm=_norm(before_mlp),
    )
    if before_cross:
        parts = _matrix(layer.cross_q), _matrix(layer.cross_kv), _matrix(layer.cross_out)
        made.cross = CrossWeights(*parts, norm=_norm(before_cross[0]))
    return made


def _matrix(linear: nn.Linear) -> Matrix:
    return Matrix(linear.weight.detach().clone(), linear.bias.detach().clone())


def _norm(norm: nn.Module) -> Norm:
    assert isinstance(norm, nn.LayerNorm)
    return Norm(norm.weight.detach().clone(), norm.bias.detach().clone())
