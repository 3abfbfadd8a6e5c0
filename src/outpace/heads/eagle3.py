"""A decoder layer over states tapped at several depths of the target, trained on its outputs; and its parallel form.

Paper: Li et al. (2025), arXiv 2503.01840, EAGLE-3. The tapped states are fused by `fc`; the first layer reads
[norm(embedding); norm(feature)] and adds to the feature; `norm` and an output matrix of its own follow. EAGLE-3.1 norms
every tap (`fc_norm`), and feeds back what is normed (`norm_output`). P-EAGLE drafts all places in one pass: behind the
text stand mask tokens with a learned feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.heads.decoder import Layer, Norm, Sight, Unrolled
from outpace.heads.feature import FeatureNet, Scorer
from outpace.heads.net import Batch, Frozen, HeadConfig, Lesson
from outpace.heads.unroll import Tally, moved, soft_loss

__all__ = ["Eagle3Net", "PEagleNet"]


class Eagle3Net(FeatureNet):
    """EAGLE-3. Settings: those of `FeatureNet`, and those below.

    layers: the tapped states, entering these layers; (2, L // 2, L - 3) unless named, (1, L // 2, L - 1) of fewer than
        8. An empty list = none is tapped: the last hidden state is the feature, and there is no `fc`.
    norm_before_residual: the first layer adds to the normed feature.
    norm_before_fc: the taps are normed side by side (`input_norm`); fc_norm: each by itself. At most one of them.
    norm_output: what is fed back is normed.
    fc_bias: the fusion has a bias. hidden: width of the drafter, 0 = the target's.
    own_output: an output matrix of its own (the files' form); else the target's.
    logit_scale: a factor on the logits.
    steps: passes over its own outputs in training.
    """

    kind: ClassVar[str] = "eagle3"
    extra: ClassVar[dict[str, Any]] = {
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "fc_bias": False,
        "hidden": 0,
        "own_output": True,
        "logit_scale": 1.0,
        "steps": 4,
    }

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        settings, taps, width = config.settings, len(config.layers), self.width
        if settings["norm_before_fc"] and settings["fc_norm"]:
            raise ConfigError("Both norm_before_fc and fc_norm were asked for.", "Use one of them.")
        if width != config.hidden_size and not (settings["own_embedding"] and settings["own_output"] and taps):
            raise ConfigError(
                f"A drafter {width} wide beside a target of {config.hidden_size} needs matrices of its own.",
                "Set own_embedding and own_output, and tap a layer.",
            )
        if taps:
            self.fc = nn.Linear(taps * config.hidden_size, width, bias=bool(settings["fc_bias"]))
        if settings["norm_before_fc"]:
            self.input_norm = Norm(config.states_size, self.shape.eps)
        if settings["fc_norm"]:
            self.fc_norm = nn.ModuleList([Norm(config.hidden_size, self.shape.eps) for _ in range(taps)])
        first = Layer(self.shape, 0, inputs=2 * width)
        first.input_layernorm = Norm(width, self.shape.eps)
        first.hidden_norm = Norm(width, self.shape.eps)
        rest = [Layer(self.shape, index) for index in range(1, self.own_layers)]
        self.layers = nn.ModuleList([first, *rest])
        self.norm = Norm(width, self.shape.eps)
        if settings["own_output"]:
            self.lm_head = nn.Linear(width, config.draft_vocab or config.vocab_size, bias=False)

    @classmethod
    def taps(cls, num_layers: int, chosen: Sequence[int] | None) -> tuple[tuple[int, ...], bool]:
        """Return three layers, or those chosen; the last hidden state alone where none is."""
        if chosen is not None:
            return tuple(int(layer) for layer in chosen), not chosen
        usual = {2, num_layers // 2, num_layers - 3}
        if num_layers < 8:  # where those would be the same
            usual = {min(1, num_layers), num_layers // 2, max(0, num_layers - 1)}
        return tuple(sorted(usual)), False

    def begin(self, frozen: Frozen) -> None:
        """Let an output matrix of its own begin as the target's, where they are as wide."""
        if self.config.settings["own_output"] and self.width == self.config.hidden_size:
            with torch.no_grad():
                eye = torch.eye(self.width, device=self.norm.weight.device)
                self.lm_head.weight.copy_(frozen.logits(eye).T)

    def fuse(self, states: Tensor) -> Tensor:
        """Return features [..., width] of tapped states."""
        settings, taps = self.config.settings, len(self.config.layers)
        if not taps:
            return states
        if settings["norm_before_fc"]:
            states = self.input_norm(states)
        if settings["fc_norm"]:
            parts = zip(self.fc_norm, states.chunk(taps, -1), strict=True)
            states = torch.cat([norm(part) for norm, part in parts], -1)
        return self.fc(states)  # type: ignore[no-any-return]

    def run(self, embeds: Tensor, features: Tensor, sight: Sight) -> Tensor:
        """Return the residual sum before the last norm, [B, T, width]."""
        first: Layer = self.layers[0]  # type: ignore[assignment]
        turns = self.rotation.at(sight.position, embeds)
        normed = first.hidden_norm(features)
        read = torch.cat([first.input_layernorm(embeds), normed], -1)
        x = normed if self.config.settings["norm_before_residual"] else features
        x = first(x, self.rotation, turns, sight, read=read)
        for layer in self.layers[1:]:
            x = layer(x, self.rotation, turns, sight)
        return x  # type: ignore[no-any-return]

    def feedback(self, out: Tensor) -> Tensor:
        """Return outputs, normed where the files say so."""
        return self.norm(out) if self.config.settings["norm_output"] else out

    def laws(self, scorer: Scorer, out: Tensor, ahead: Tensor) -> Tensor:
        """Return logits [..., K] of the next token."""
        del ahead
        return self.logits(scorer, out[..., -1, :])

    def logits(self, scorer: Scorer, out: Tensor) -> Tensor:
        """Return logits [..., K] of outputs [..., width]."""
        x, settings = self.norm(out), self.config.settings
        logits = self.lm_head(x) if settings["own_output"] else scorer.logits(x)
        return logits * settings["logit_scale"] if settings["logit_scale"] != 1 else logits

    def loss(self, batch: Batch) -> Lesson:
        """Cross-entropy against the target's laws, pass by pass on its own outputs (section 3.2)."""
        frozen = batch.frozen
        embeds = self.embed(frozen, batch.tokens[:, 1:])
        features = self.fuse(batch.states[:, :-1])
        sight = Unrolled(len(embeds), embeds.shape[1], embeds.device)
        tally = Tally(batch)
        with torch.no_grad():
            law = frozen.logits(batch.last[:, 1:]).softmax(-1)
        steps = int(self.config.settings["steps"])
        for step in range(steps if self.training else max(steps, self.config.depth)):
            sight.advance()
            out = self.run(embeds, features, sight)
            logits = self.logits(frozen, out)
            # Passes weigh 0.8 to the power of their number, as in the authors' training.
            tally.add(0.8**step * soft_loss(logits, law, tally.weight(step) * tally.is_known))
            tally.count(step, logits)
            features = moved(self.feedback(out))
        return tally.lesson()


class PEagleNet(Eagle3Net):
    """P-EAGLE drafts `depth` places in one pass. Settings: those of `Eagle3Net`, and those below.

    mask_token: the token that stands at places to be drafted; -1 = the last of the vocabulary.

    Source: P-EAGLE, arXiv 2602.01469. In training every place is masked at every depth, as one more pass each; the
    paper leaves out some at random, to save memory.
    """

    kind: ClassVar[str] = "p-eagle"
    extra: ClassVar[dict[str, Any]] = {**Eagle3Net.extra, "mask_token": -1}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.tail = config.depth - 1
        if not config.layers:
            raise ConfigError("P-EAGLE reads tapped states.", "Name the layers, or leave them out.")
        self.mask_hidden = nn.Parameter(0.02 * torch.randn(1, 1, config.states_size))

    @property
    def mask_token(self) -> int:
        """The token at places to be drafted."""
        token = int(self.config.settings["mask_token"])
        return token if token >= 0 else self.config.vocab_size - 1

    def anchor(self, depth: int) -> int:
        """Return 0: the one pass reads no drafts."""
        del depth
        return 0

    def most(self) -> int:
        """Return how many places it was trained for."""
        return self.config.depth

    def tail_entries(self, scorer: Scorer, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask tokens, and their feature."""
        masks = last.new_full((len(last), self.tail), self.mask_token)
        feature = self.fuse(self.mask_hidden).expand(len(last), self.tail, -1)
        return self.embed(scorer, masks), feature

    def laws(self, scorer: Scorer, out: Tensor, ahead: Tensor) -> Tensor:
        """Return logits [..., K] of the place that many tokens ahead."""
        index = ahead.clamp(max=self.tail)[..., None, None].expand(*ahead.shape, 1, out.shape[-1])
        return self.logits(scorer, out.gather(-2, index).squeeze(-2))

    def loss(self, batch: Batch) -> Lesson:
        """Cross-entropy against the target's laws at every depth; pass j stands for the masks j places ahead."""
        frozen, depth = batch.frozen, self.config.depth
        embeds, features = self.embed(frozen, batch.tokens[:, 1:]), self.fuse(batch.states[:, :-1])
        sight = Unrolled(len(embeds), embeds.shape[1], embeds.device)
        tally = Tally(batch)
        with torch.no_grad():
            law = frozen.logits(batch.last[:, 1:]).softmax(-1)
            mask = self.embed(frozen, torch.full_like(batch.tokens[:, 1:], self.mask_token))
        for step in range(depth):
            sight.advance()
            logits = self.logits(frozen, self.run(embeds, features, sight))
            tally.add(0.8**step * soft_loss(logits, law, tally.weight(step) * tally.is_known))
            tally.count(step, logits)
            embeds, features = mask, self.fuse(self.mask_hidden).expand_as(features)
        return tally.lesson()
