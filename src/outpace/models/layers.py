"""The arithmetic of a decoder's layers: norms, attention over a cache, feed-forwards, and the order they come in.

Every arrangement that a `Spec` can describe is here, one expression each, over the weights of one layer and a layout
that says where tokens go and what they see. Knows no embedding, no head, no recording and no family's name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.models.attention import attend
from outpace.models.layout import Layout
from outpace.models.spec import Spec
from outpace.models.weights import CrossWeights, LayerWeights, Norm

__all__ = ["Layers", "activate", "rms_norm"]


class Layers:
    """The layers of one decoder, without their weights.

    Args:
        spec: its shape.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def run(
        self,
        layers: Sequence[LayerWeights],
        x: Tensor,
        layout: Layout,
        buffers: list[Tensor],
        skip: Sequence[int],
        taps: Sequence[int],
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Send x [B * T, hidden] through the layers that are not skipped; return it and what enters the tapped ones."""
        tapped: dict[int, Tensor] = {}
        layer = {"pre": self._pre_layer, "after": self._after_layer}.get(self.spec.norm_placement, self._post_layer)
        for index, weights in enumerate(layers):
            if index in taps:
                tapped[index] = x
            if index not in skip:
                x = layer(index, weights, x, layout, buffers)
        if self.spec.num_layers in taps:
            tapped[self.spec.num_layers] = x
        return x, tapped

    def _pre_layer(self, index: int, w: LayerWeights, x: Tensor, layout: Layout, buffers: list[Tensor]) -> Tensor:
        """X + f(norm(x)), one after the other or side by side."""
        attention = self._attention(index, w, self.norm(x, w.attn_norm), layout, buffers)
        if self.spec.is_parallel:
            return x + attention + self.mlp(w, self.norm(x, w.mlp_norm))
        x = x + attention
        if w.cross is not None:
            x = x + self._cross(index, w.cross, self.norm(x, w.cross.norm), layout)
        return x + self.mlp(w, self.norm(x, w.mlp_norm))

    def _post_layer(self, index: int, w: LayerWeights, x: Tensor, layout: Layout, buffers: list[Tensor]) -> Tensor:
        """X + norm(f(x)), and with a norm inside as well ("sandwich")."""
        read = x if w.attn_norm is None else self.norm(x, w.attn_norm)
        x = x + self.norm(self._attention(index, w, read, layout, buffers), w.attn_post_norm)
        read = x if w.mlp_norm is None else self.norm(x, w.mlp_norm)
        return x + self.norm(self.mlp(w, read), w.mlp_post_norm)

    def _after_layer(self, index: int, w: LayerWeights, x: Tensor, layout: Layout, buffers: list[Tensor]) -> Tensor:
        """norm(x + f(x))."""
        x = self.norm(x + self._attention(index, w, x, layout, buffers), w.attn_norm)
        if w.cross is not None:
            x = self.norm(x + self._cross(index, w.cross, x, layout), w.cross.norm)
        return self.norm(x + self.mlp(w, x), w.mlp_norm)

    def norm(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Return x normed as the decoder's norms are, or x where there is none."""
        if norm is None:
            return x
        spec, weight = self.spec, norm.weight
        if spec.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, norm.bias, spec.norm_eps)
        return rms_norm(x, weight, spec.norm_eps)

    def mlp(self, w: LayerWeights, x: Tensor) -> Tensor:
        """Return what a layer's feed-forward says of x [B * T, hidden]."""
        if w.mixture is not None:
            routed = w.mixture(x)
            return routed + self._dense(w, x) if w.down.shape[1] else routed
        return self._dense(w, x)

    def _dense(self, w: LayerWeights, x: Tensor) -> Tensor:
        up = w.up(x)
        if not self.spec.is_gated:
            return w.down(activate(up, self.spec.activation))
        gate, up = up.chunk(2, dim=-1)
        return w.down(activate(gate, self.spec.activation).mul_(up))

    def _attention(self, index: int, w: LayerWeights, x: Tensor, layout: Layout, buffers: list[Tensor]) -> Tensor:
        """Attention over the cache, with this forward's keys and values staged in it first; x [B * T, hidden]."""
        spec = self.spec
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        rows, size = layout.rows, layout.size
        qkv = w.qkv(x).view(rows, size, heads + 2 * kv_heads, dim)
        # Weights are packed so that queries, keys and values are one product, and the first two one rotation.
        turned = qkv.narrow(2, 0, heads + kv_heads)
        if w.q_norm is not None:
            turned = self._norm_heads(w, turned)
        which = spec.rope_index[index]
        if which >= 0:
            cos, sin = layout.rotation[which]
            turned = torch.addcmul(turned * cos, turned.roll(dim // 2, -1), sin)
        query = turned.narrow(2, 0, heads)
        if layout.query_scale is not None:
            query = query * layout.query_scale
        # Staged before they are read: nodes see each other through the cache, as they see what is valid in it.
        keys, values = buffers[2 * index], buffers[2 * index + 1]
        stage(keys, turned.narrow(2, heads, kv_heads), layout)
        stage(values, qkv.narrow(2, heads + kv_heads, kv_heads), layout)
        first, mask, is_causal = layout.masks[spec.windows[index]]
        extent = layout.extent - first
        keys, values = keys.narrow(2, first, extent), values.narrow(2, first, extent)
        if w.relative is not None:
            mask, is_causal = layout.bias(w.relative, mask), False
        return w.o(attend(query, keys, values, mask, is_causal, spec.attn_scale, spec.attn_softcap))

    def _cross(self, index: int, w: CrossWeights, x: Tensor, layout: Layout) -> Tensor:
        """Attention over what the encoder read; x [B * T, hidden]."""
        spec = self.spec
        query = w.q(x).view(layout.rows, layout.size, spec.num_heads, spec.head_dim)
        keys, values = layout.sources[index]
        return w.o(attend(query, keys, values, layout.source_mask, False, spec.attn_scale, 0.0))

    def _norm_heads(self, w: LayerWeights, turned: Tensor) -> Tensor:
        """Norm queries and keys [B, T, H + K, D], each head by itself or all heads at once."""
        heads, eps = self.spec.num_heads, self.spec.norm_eps
        query, key = turned[:, :, :heads], turned[:, :, heads:]
        if self.spec.qk_norm == "full":
            query = rms_norm(query.flatten(2), w.q_norm, eps).view(query.shape)
            key = rms_norm(key.flatten(2), w.k_norm, eps).view(key.shape)
        else:
            query, key = rms_norm(query, w.q_norm, eps), rms_norm(key, w.k_norm, eps)
        return torch.cat([query, key], dim=2)


def stage(buffer: Tensor, entries: Tensor, layout: Layout) -> None:
    """Write entries [B, T, K, D] into the scratch slots of a buffer [B, K, capacity, D]."""
    if layout.slots is None:
        buffer.narrow(2, layout.start, layout.size).copy_(entries.transpose(1, 2))
    else:
        buffer.transpose(1, 2).index_put_((layout.row_index, layout.slots), entries)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Scale rows of x to unit root mean square, times weight; a float32 weight over a half x is applied in float32."""
    if weight is not None and weight.dtype != x.dtype:
        return torch.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)
    return torch.rms_norm(x, x.shape[-1:], weight, eps)


def activate(x: Tensor, name: str) -> Tensor:
    """Apply the activation called `name`."""
    if name == "silu":
        return F.silu(x)
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")
