"""Random weights of a decoder, for tests of the compiled kernels."""

from __future__ import annotations

import torch

from outpace.models.spec import Spec
from outpace.models.weights import CrossWeights, LayerWeights, Matrix, Norm, Weights

__all__ = ["make_weights", "streamed_bytes"]


def make_weights(spec: Spec, dtype: torch.dtype, seed: int = 0) -> Weights:
    """Return random weights of a decoder, without biases of projections; activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(outputs: int, inputs: int) -> Matrix:
        return Matrix((torch.randn(outputs, inputs, generator=generator) * inputs**-0.5).to(dtype))

    def norm(size: int) -> Norm:
        bias = torch.zeros(size, dtype=dtype) if spec.has_norm_bias else None
        return Norm(torch.ones(size, dtype=dtype), bias)

    hidden = spec.hidden_size
    layers = [
        LayerWeights(
            matrix(spec.q_size + 2 * spec.kv_size, hidden),
            matrix(hidden, spec.q_size),
            matrix((2 if spec.is_gated else 1) * spec.ffn_size, hidden),
            matrix(hidden, spec.ffn_size),
            norm(hidden),
            norm(hidden),
        )
        for _ in range(spec.num_layers)
    ]
    embed = torch.randn(spec.vocab_size, hidden, generator=generator).to(dtype)
    head = Matrix(embed) if spec.tie_embeddings else matrix(spec.vocab_size, hidden)
    weights = Weights(embed, layers, head, norm(hidden) if spec.has_final_norm else None)
    if spec.positions == "learned":
        rows = spec.position_offset + spec.max_positions
        weights.positions = torch.randn(rows, hidden, generator=generator).to(dtype)
    if spec.has_embed_norm:
        weights.embed_norm = norm(hidden)
    if spec.has_cross:
        for layer in layers:
            query, both = matrix(spec.q_size, hidden), matrix(2 * spec.kv_size, hidden)
            layer.cross = CrossWeights(query, both, matrix(hidden, spec.q_size), norm(hidden))
    return weights


def streamed_bytes(spec: Spec, dtype: torch.dtype) -> int:
    """Return the bytes of weights that one token reads: all matrices but the embedding."""
    tables = spec.vocab_size * spec.hidden_size
    return (spec.num_weights - (0 if spec.tie_embeddings else tables)) * dtype.itemsize
