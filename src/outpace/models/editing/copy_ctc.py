"""Copy-aware CTC: a source token becomes a few frames, each of which writes a token, copies its own, or says nothing.

Paper: Zhang et al. (2023), arXiv 2310.07821. A target is the sum over all alignments that collapse to it: equal
neighbouring symbols become one, blanks are dropped, and a copy is the source token that it stands at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from outpace.models.one_pass import OnePassModel, end_law
from outpace.papers import Paper

from .encoder import Encoder, Sizes

__all__ = ["PAPERS", "CopyCtc", "CopyCtcModel", "collapse", "copy_ctc_loss"]

PAPERS = (
    Paper(
        "Non-autoregressive Text Editing with Copy-aware Latent Alignments",
        "Zhang et al.",
        2023,
        "2310.07821",
        108,
        "Its pre-trained encoder, iterative refinement and beam search.",
        "outpace train correct-ctc",
    ),
)
_FAVOUR = 6.0  # nats by which a copy and a blank begin ahead of each token
_NEVER = -1e30  # a logarithm that adds nothing to any sum, and whose gradient is no NaN


class CopyCtc(nn.Module):
    """An encoder, a few frames per source token, and a law over V tokens, copy and blank at each frame.

    Args:
        sizes: its sizes.
    """

    model_type: ClassVar[str] = "outpace_copy_ctc"

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.factor = sizes, sizes.factor
        factor = sizes.factor
        self.encoder = Encoder(sizes)
        self.spread = nn.Linear(sizes.width, factor * sizes.width)
        self.norm = nn.LayerNorm(sizes.width)
        self.actions = nn.Linear(sizes.width, 2)  # copy, blank: at first nearly all that it does
        nn.init.constant_(self.actions.bias, _FAVOUR)

    def forward(self, sources: Tensor, is_real: Tensor) -> Tensor:
        """Return log-probabilities [B, S * factor, V + 2]: of each token, of a copy, of a blank."""
        states = self.encoder(sources, is_real)
        own = self.spread(states).unflatten(-1, (self.factor, -1)).flatten(1, 2)
        frames = self.norm(states.repeat_interleave(self.factor, 1) + own)
        logits = torch.cat([frames @ self.encoder.embed_tokens.weight.T, self.actions(frames)], -1)
        return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)

    def loss(self, sources: Tensor, is_real: Tensor, targets: Sequence[list[int]]) -> Tensor:
        """Return the mean loss in nats per target token and end; targets that no alignment reaches are left out.

        Args:
            sources: [B, S] int64.
            is_real: [B, S] bool, False on padding.
            targets: tokens per row, without the end.
        """
        lengths = torch.tensor([len(target) for target in targets], device=sources.device)
        ids = [torch.tensor(target, dtype=torch.int64, device=sources.device) for target in targets]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        losses = copy_ctc_loss(self(sources, is_real), sources, is_real.sum(1), padded, lengths)
        is_reached = losses < -0.5 * _NEVER
        return torch.where(is_reached, losses, 0.0).sum() / ((lengths + 1) * is_reached).sum().clamp(min=1)

    def adapter(self, end: int, start_token: int) -> CopyCtcModel:
        """Return the network behind the contract."""
        return CopyCtcModel(self, end, start_token)


def copy_ctc_loss(
    log_probs: Tensor, sources: Tensor, source_lengths: Tensor, targets: Tensor, target_lengths: Tensor
) -> Tensor:
    """Return the negative log-probability of each target, [B]: the sum over all its alignments.

    A frame's copy is a symbol of its own, one per source token, so copies of two equal neighbours stay two. Where no
    alignment is long enough, the loss is about 1e30.

    Args:
        log_probs: [B, T, V + 2] of `CopyCtc`; T is a multiple of S.
        sources: [B, S] int64, padded.
        source_lengths: [B].
        targets: [B, N] int64, padded with any valid token.
        target_lengths: [B].
    """
    size, factor = targets.shape[1], log_probs.shape[1] // sources.shape[1]
    vocab = log_probs.shape[2] - 2
    never = log_probs.new_full((len(sources), 1), _NEVER)
    # Cut frame by frame before the sums: the gradient of a cut out of [B, T, V + 2] is as large as that, each time.
    written = log_probs.gather(2, targets.unsqueeze(1).expand(-1, log_probs.shape[1], -1)).unbind(1)  # [B, N] each
    copying, silent = (log_probs[:, :, vocab + at].unsqueeze(2).unbind(1) for at in (0, 1))  # [B, 1] each
    is_same = torch.zeros_like(targets, dtype=torch.bool)
    is_same[:, 1:] = targets[:, 1:] == targets[:, :-1]
    # After each frame: how likely it is that so many labels are out, and that the last frame was a blank, a token (of
    # the last label) or a copy (of it). Label n stands at place n of `token` and `copy`, behind n + 1 of `blank`.
    blank = torch.cat([torch.zeros_like(never), never.expand(-1, size)], 1)
    token = copy = never.expand(-1, size + 1)
    for frame in range(log_probs.shape[1]):
        place, is_first = frame // factor, frame % factor == 0
        # 1) A new label comes behind a blank, or behind another symbol.
        others = torch.where(is_same, _NEVER, token[:, :-1])
        before_token = [blank[:, :-1], others, copy[:, :-1], token[:, 1:]]
        before_copy = [blank[:, :-1], token[:, :-1], (copy[:, :-1] if is_first else copy[:, 1:])]
        new_token = written[frame] + _total(before_token)
        can_copy = sources[:, place : place + 1] == targets
        new_copy = torch.where(can_copy, copying[frame] + _total(before_copy), _NEVER)
        # 2) A blank comes behind anything. Frames of padding change nothing.
        new_blank = silent[frame] + _total([blank, token, copy])
        is_on = (place < source_lengths).unsqueeze(1)
        blank = torch.where(is_on, new_blank, blank)
        token = torch.where(is_on, torch.cat([never, new_token], 1), token)
        copy = torch.where(is_on, torch.cat([never, new_copy], 1), copy)
    last = target_lengths.unsqueeze(1)
    return -_total([end.gather(1, last).squeeze(1) for end in (blank, token, copy)])


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).logsumexp(0)


def collapse(symbols: Sequence[int], source: Sequence[int], factor: int, vocab: int) -> list[int]:
    """Return the frames that write a token, the first of each run, of a path of symbols (V = copy, V + 1 = blank)."""
    named = [
        (vocab, frame // factor) if symbol == vocab else (symbol, 0) for frame, symbol in enumerate(symbols)
    ]  # a copy is told by its place
    assert len(symbols) <= factor * len(source)
    return [
        frame
        for frame, symbol in enumerate(named)
        if symbol[0] != vocab + 1 and (frame == 0 or named[frame - 1] != symbol)
    ]


class CopyCtcModel(OnePassModel):
    """A copy-aware CTC network behind the contract: its likeliest path, collapsed, is its text.

    The law of a token is that of the frame which writes it, a copy counted as the copied token where that is likelier,
    and without the blank; so drawing at a temperature varies the words and not the alignment.

    Args:
        network: the network.
        end: the token that ends a text.
        start_token: see `OnePassModel`.
    """

    def __init__(self, network: CopyCtc, end: int, start_token: int) -> None:
        sizes = network.sizes
        super().__init__(sizes.vocab, sizes.context, sizes.context * network.factor + 2, start_token)
        self.network, self.end = network.eval(), end
        weight = network.actions.weight
        self.device, self.dtype = weight.device, weight.dtype

    def write(self, sources: Sequence[list[int]]) -> list[Tensor]:
        """Return per row the logits [N, V] of its text, the end's law last."""
        lengths = torch.tensor([len(source) for source in sources])
        ids = [torch.tensor(source, device=self.device) for source in sources]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        is_real = (torch.arange(padded.shape[1]) < lengths[:, None]).to(self.device)
        found = self.network(padded, is_real)
        paths = found.argmax(-1).tolist()
        return [self._laws(*row) for row in zip(found, paths, sources, strict=True)]

    def _laws(self, found: Tensor, path: list[int], source: list[int]) -> Tensor:
        factor, vocab = self.network.factor, self.capabilities.vocab_size
        frames = collapse(path[: factor * len(source)], source, factor, vocab)
        laws = found[frames, :vocab].to(self.dtype)
        at = torch.tensor([source[frame // factor] for frame in frames], dtype=torch.int64, device=self.device)
        own = laws.gather(1, at[:, None])
        laws = laws.scatter(1, at[:, None], torch.maximum(own, found[frames, vocab, None].to(self.dtype)))
        ends = (laws.argmax(-1) == self.end).nonzero()
        whole = laws[: int(ends[0])] if len(ends) else laws
        return torch.cat([whole, end_law(vocab, self.end, self.dtype).to(self.device)])
