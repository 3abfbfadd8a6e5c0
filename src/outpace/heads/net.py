"""What every trained drafter is: a small network, what it reads of its target, and what it is trained to minimise.

A kind is one file here: a subclass of `HeadNet` with its parts, its loss, and how it drafts (`outpace.heads.draft`).
Tensors are named as the kind's original files name them, so that reading those needs no table.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from outpace.errors import ConfigError, nearest
from outpace.kernels.branches import Pairs
from outpace.models.quantised import Quantised
from outpace.types import Adapter, Context, Outputs

if TYPE_CHECKING:
    from outpace.heads.draft import HeadDrafter
    from outpace.heads.model import HeadModel

__all__ = ["Batch", "Frozen", "HeadConfig", "HeadNet", "Lesson", "kinds", "load_kind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """What a trained drafter is, and what it was made for.

    Attributes:
        kind: names the class of its network.
        hidden_size, vocab_size, num_layers: of the target.
        layers: hidden states that it reads, *entering* these layers of the target (`Outputs.layers`).
        has_last: it reads the last hidden state, after the target's final norm, too (joined behind the others).
        draft_vocab: tokens that it can draft; 0 = all of the target's.
        depth: tokens that it drafts ahead; for kinds that draft one by one, as many as it was trained for.
        settings: what the kind's own parts need.
        target: name of the target.
        vocabulary: of the target, as `outpace.text.fingerprint` tells it; "" = not told, so that it has to be named.
        accepted: drafts of a greedy chain that the target kept per step in texts held out from training; 0 = not
            measured. Of several drafters the best one is taken.
    """

    kind: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    layers: tuple[int, ...] = ()
    has_last: bool = True
    draft_vocab: int = 0
    depth: int = 4
    settings: Mapping[str, Any] = field(default_factory=dict)
    target: str = ""
    vocabulary: str = ""
    accepted: float = 0.0

    @property
    def outputs(self) -> Outputs:
        """What is asked of the target's forwards."""
        return Outputs(self.layers, self.has_last)

    @property
    def states_size(self) -> int:
        """Width F of the states of a token."""
        return self.hidden_size * (len(self.layers) + self.has_last)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "layers": list(self.layers), "settings": dict(self.settings)}


class Frozen(Protocol):
    """The target while a drafter is trained: its weights do not change, gradients pass through to what it is given."""

    ids: Tensor | None
    """[K] int64, ascending: the tokens that can be drafted; None = all."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Return float32 embeddings [..., hidden] of tokens [...]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the target's logits [..., K] of last hidden states [..., hidden], of tokens that can be drafted."""
        ...

    def forward(
        self,
        inputs: Tensor,
        position: Tensor,
        visible: Tensor,
        states: Tensor | None = None,
        first: int = 0,
        hook: Any = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the target's own layers with gradients, for kinds that train what enters them.

        Args:
            inputs: [B, T, hidden] what enters layer `first`.
            position: [B, T] int64.
            visible: [B, T, T] bool, token (row) sees token (column).
            states: unused states may be given by kinds that need them in `hook`.
            first: the first layer that is run.
            hook: called as hook(module_name, layer, inputs, output) -> output at every matrix, for adapters of low
                rank; None = nobody is.

        Returns:
            The last hidden states [B, T, hidden], after the final norm, and what entered each layer from `first` on.
        """
        ...


@dataclass(slots=True)
class Batch:
    """Texts that the target wrote, and what its forward told of them.

    Attributes:
        tokens: [B, T] int64.
        is_taught: [B, T] bool, the token at this place was written by the target (not by its user), and is no padding.
        states: [B, T, F] float32, per token what `HeadConfig.outputs` asks for, joined.
        last: [B, T, hidden] float32, the last hidden state after the final norm: `frozen.logits(last)` is the law of
            the next token.
        frozen: the target.
        step: number of the training step, from 0; draws and curricula follow it.
        progress: share of the steps that are done, 0 to 1.
    """

    tokens: Tensor
    is_taught: Tensor
    states: Tensor
    last: Tensor
    frozen: Frozen
    step: int = 0
    progress: float = 0.0


@dataclass(slots=True)
class Lesson:
    """What a batch came to.

    Attributes:
        loss: what is minimised, in nats, with a gradient.
        hits: [D] float, per depth how often the drafter's likeliest token was the text's, every token before it given
            (teacher forcing);
        counts: [D] float, of how many.
        reached: [D] float, per depth how often that and every shallower draft of the same place was right, so that
            its sum over `counts[0]` is the accepted length of a greedy chain; None where the kind cannot tell.
        parts: named parts of the loss, for the log.
    """

    loss: Tensor
    hits: Tensor
    counts: Tensor
    reached: Tensor | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


class HeadNet(nn.Module, ABC):
    """Base of the networks.

    Args:
        config: what it is made for.

    Attributes:
        coded: matrices that were stored as bytes, by the name of their tensor; kernels that can compute with those.
    """

    kind: ClassVar[str] = ""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.coded: dict[str, Quantised] = {}

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration that suits a target of these sizes; settings are the kind's, "depth" among them.

        Raises:
            ConfigError: a setting that the kind does not have, or one out of its range.
        """
        depth = int(settings.pop("depth", 4))
        if settings:
            raise ConfigError(f"The kind {cls.kind!r} has no setting {min(settings)!r}.", "Leave it out.")
        return HeadConfig(
            kind=cls.kind,
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            num_layers=num_layers,
            depth=depth,
            target=target,
        )

    def begin(self, frozen: Frozen) -> None:
        """Set weights that are best begun from the target's; called once, before training."""
        del frozen

    @abstractmethod
    def loss(self, batch: Batch) -> Lesson:
        """Return the loss of a batch, and how well it was guessed."""

    @abstractmethod
    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return what drafts for the joining rows."""

    def beside(self, target: Adapter) -> Adapter:
        """Return the target as it is run where this drafts for it (`Adapter.beside`)."""
        return target

    served: ClassVar[tuple[str, ...]] = ()
    """Children that what `compile` returns takes the place of."""

    def compile(self, model: HeadModel) -> Any:
        """Return what compiled kernels run in place of the network's own modules; None = nothing."""
        del model
        return None

    def pairs(self, model: HeadModel) -> Pairs | None:
        """Return what a token adds to the laws after it, where that is all that a path changes; None = it is not."""
        del model
        return None

    def write_beside(self, directory: Path) -> None:
        """Write what belongs to the drafter beside its own files."""
        del directory

    def bytes_per_draft(self) -> int:
        """Return how many bytes of weights one drafting step reads, the target's trimmed head left out."""
        return sum(weight.numel() * weight.element_size() for weight in self.parameters())


_LATER = ("net", "draft", "model", "files", "stored", "find", "losses", "known", "rounded", "compiled")


def kinds() -> dict[str, type[HeadNet]]:
    """Return the networks of this package by kind."""
    import outpace.heads as here

    for module in pkgutil.iter_modules(here.__path__):
        if module.name not in _LATER and not module.ispkg:
            importlib.import_module(f"outpace.heads.{module.name}")
    return {one.kind: one for one in _below(HeadNet) if one.kind}  # type: ignore[type-abstract]


def _below(base: type[HeadNet]) -> list[type[HeadNet]]:
    return [one for child in base.__subclasses__() for one in (child, *_below(child))]


def load_kind(kind: str) -> type[HeadNet]:
    """Return the network class of a kind.

    Raises:
        ConfigError: there is none of that name.
    """
    known = kinds()
    if kind not in known:
        raise ConfigError(f"There is no kind of drafter called {kind!r}.", nearest(kind, known, "kind"))
    return known[kind]


def shifted(tokens: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Return [B, T] the token `by` places further on, and bool [B, T] where there is one."""
    size = tokens.shape[1]
    moved = torch.zeros_like(tokens)
    moved[:, : max(0, size - by)] = tokens[:, by:]
    return moved, torch.arange(size, device=tokens.device).expand_as(tokens) < size - by
