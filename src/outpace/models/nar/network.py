"""The one network of the non-autoregressive family: an encoder, places, a decoder that sees all of them, a table.

A kind is one file. It says which places a source gets (`places`), what it keeps of a pass (`read`), how its likeliest
text follows (`laws`), how likely a target is (`nll`), and what each place should say of it (`aligned`, which glancing
and other objectives need). What is trained on it lives in `outpace.train.nar`, how it is decoded otherwise than by
`laws` in `outpace.methods.whole`.

Shapes: B rows, S source tokens, L places, T target tokens, V vocabulary, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from outpace.models.editing.encoder import Layer

from .context_aware import decoder_layer

__all__ = ["NarConfig", "NarNet", "Pass", "uniform_copy"]

UNSAID = -1  # of `aligned`: the place is not on the target's path


@dataclass(frozen=True, slots=True, kw_only=True)
class NarConfig:
    """Sizes that every kind has; kinds add their own.

    Attributes:
        vocab_size: V, of both sides; 0 = not said yet.
        width: W, of the residual stream.
        heads: attention heads.
        ffn: width of the feed-forward networks.
        encoder_layers, decoder_layers: of either side.
        dropout: of each branch, in training.
        max_source: most source tokens, the end included.
        max_positions: most places.
        start_token: what a text is said to begin with; never written.
        end_token: what ends sources and texts.
        cross_window: source tokens to either side that the local branch of cross-attention sees; 0 = it has none.
    """

    vocab_size: int = 0
    width: int = 192
    heads: int = 4
    ffn: int = 512
    encoder_layers: int = 4
    decoder_layers: int = 4
    dropout: float = 0.1
    max_source: int = 256
    max_positions: int = 1024
    start_token: int = 2
    end_token: int = 0
    cross_window: int = 0


@dataclass(slots=True)
class Pass:
    """One batch on its way through the network.

    Attributes:
        sources: [B, S] int64, padded.
        is_real: [B, S] bool, False on padding.
        states: [B, S, W], what the encoder made of them.
        inputs: [B, L, W], what the decoder reads; objectives may show it more.
        is_place: [B, L] bool, False on padding.
        targets: [B, T] int64 without ends, padded with 0; empty when decoding.
        lengths: [B] int64 of the targets.
        extra: what a kind keeps for itself, such as predicted lengths.
    """

    sources: Tensor
    is_real: Tensor
    states: Tensor
    inputs: Tensor
    is_place: Tensor
    targets: Tensor
    lengths: Tensor
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> Tensor:
        """Places that a loss over single places asks for, [B, L] bool: the real ones but those shown (glancing)."""
        shown: Tensor | None = self.extra.get("shown")
        return self.is_place if shown is None else self.is_place & ~shown


class Fast(Protocol):
    """The layers of a network on other kernels; see `outpace.models.nar.compiled`."""

    def encode(self, sources: Tensor, is_real: Tensor) -> Tensor:
        """Return what `NarNet.encode` returns."""
        ...

    def decode(self, run: Pass) -> Tensor:
        """Return what `NarNet.decode` returns."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits in place of `NarNet.head`'s log-probabilities."""
        ...


class NarNet(nn.Module, ABC):
    """Base of all kinds.

    Args:
        config: its sizes.

    Attributes:
        kind: its name, as in `config.json`.
        extra_symbols: rows that the table has beyond V, such as CTC's blank (symbol V).
        unsaid: tokens that no place may say, such as masks; their log-probability is minus infinity.
        own_layers: `encode` or `decode` do more than the layers say, so that compiled kernels cannot stand for them.
        fast: what runs the layers in place of the modules, once compiled.
        wants_links: training gives `extra["links"]`, [B, T] int64: the source token that each target token translates.
    """

    Config: ClassVar[type[Any]] = NarConfig
    kind: ClassVar[str] = ""
    extra_symbols: ClassVar[int] = 0
    own_layers: ClassVar[bool] = False
    unsaid: tuple[int, ...] = ()
    wants_links: ClassVar[bool] = False
    config: Any
    fast: Fast | None = None

    def __init__(self, config: NarConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.embed_tokens = nn.Embedding(config.vocab_size + self.extra_symbols, width)
        self.source_positions = nn.Embedding(config.max_source, width)
        self.place_positions = nn.Embedding(config.max_positions, width)
        for table in (self.embed_tokens, self.source_positions, self.place_positions):
            nn.init.normal_(table.weight, std=width**-0.5)
        layers, drop = config.encoder_layers, config.dropout
        self.encoder = nn.ModuleList(Layer(config, dropout=drop) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width)
        layers = config.decoder_layers
        self.decoder = nn.ModuleList(decoder_layer(config) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(drop)

    # What the kinds share.

    def encode(self, sources: Tensor, is_real: Tensor) -> Tensor:
        """Return the states [B, S, W] of sources [B, S]."""
        if self.fast is not None:
            return self.fast.encode(sources, is_real)
        state = self.drop(self.embed_tokens(sources) + self.source_positions.weight[: sources.shape[1]])
        seen = is_real[:, None, None, :]
        for layer in self.encoder:
            state = layer(state, seen)
        normed: Tensor = self.encoder_norm(state)
        return normed

    def decode(self, run: Pass) -> Tensor:
        """Return the last states [B, L, W] of the places."""
        if self.fast is not None:
            return self.fast.decode(run)
        state = self.drop(run.inputs + self.place_positions.weight[: run.inputs.shape[1]])
        seen, real = run.is_place[:, None, None, :], run.is_real[:, None, None, :]
        for layer in self.decoder:
            state = layer(state, seen, run.states, real)
        normed: Tensor = self.decoder_norm(state)
        return normed

    def head(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities [..., V + extra_symbols] of last states [..., W], in float32 or float64."""
        logits = hidden @ self.embed_tokens.weight.T if self.fast is None else self.fast.head(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.unsaid:
            logits = logits.index_fill(-1, torch.tensor(self.unsaid, device=logits.device), float("-inf"))
        return logits.log_softmax(-1)

    def begin(
        self,
        sources: Tensor,
        is_real: Tensor,
        targets: Tensor | None = None,
        lengths: Tensor | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Pass:
        """Encode sources and lay out their places; with targets, those that training wants.

        Args:
            sources: [B, S] int64, padded.
            is_real: [B, S] bool.
            targets: [B, T] int64 without ends, padded; None = decoding.
            lengths: [B] int64 of the targets.
            extra: what `places` finds in `Pass.extra`.
        """
        states = self.encode(sources, is_real)
        none = sources.new_zeros(len(sources), 0)
        given = none if targets is None else targets
        held = sources.new_zeros(len(sources)) if lengths is None else lengths
        empty = states[:, :0], is_real[:, :0]
        run = Pass(sources, is_real, states, *empty, given, held, dict(extra or {}))
        run.inputs, run.is_place = self.places(run)
        return run

    def loss(self, run: Pass) -> Tensor:
        """Return `nll` of what a pass gives, [B], in training; a kind may come to it with less memory."""
        return self.nll(self.finish(run), run)

    def glance(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Return what each place should say (`aligned`) and what it says by itself, [B, L] int64 each, in one pass."""
        outputs = self.finish(run)
        return self.aligned(outputs, run), outputs[0].argmax(-1)

    def texts(self, outputs: Sequence[Tensor], is_place: Tensor, count: int) -> list[list[list[int]]]:
        """Return per row up to `count` likely texts without ends, likeliest first; a kind without a lattice has one."""
        del count
        return [[law.argmax(-1).tolist()] for law in self.laws(outputs, is_place)]

    # What a kind gives.

    @abstractmethod
    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Return the inputs [B, L, W] of the places, and which are real [B, L]; with targets, as training wants."""

    @abstractmethod
    def finish(self, run: Pass) -> list[Tensor]:
        """Run the decoder and return what a pass gives, rows on axis 0 of each.

        Axis 1 may be padded; other axes have sizes that depend on the config alone. The first is log-probabilities
        [B, L, V + extra_symbols]. It is followed by what else the kind needs; `is_place` is added by the caller.
        """

    @abstractmethod
    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the negative log-likelihood [B] of the targets in nats; where none can be, at least 1e20."""

    @abstractmethod
    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the symbol that each place says on the likeliest way to its target, [B, L]; UNSAID = off the way."""

    @abstractmethod
    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return per row the logits [N, V] of its likeliest text's tokens, without an end; see `OnePassModel.write`."""


def uniform_copy(states: Tensor, is_real: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Spread source states evenly over places.

    Args:
        states: [B, S, W].
        is_real: [B, S] bool.
        lengths: [B] int64, places of each row, at least 1.

    Returns:
        inputs [B, L, W], where place t holds the state at round(t * (S - 1) / (L - 1)), and is_place [B, L].
    """
    at = torch.arange(int(lengths.max()), device=states.device)
    last = (is_real.sum(1) - 1)[:, None]
    index = (at * last / (lengths - 1).clamp(min=1)[:, None]).round().long().minimum(last)
    inputs = states.gather(1, index[:, :, None].expand(-1, -1, states.shape[-1]))
    return inputs, at < lengths[:, None]
