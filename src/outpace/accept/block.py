"""Block verification: a chain is accepted up to the last position that passes, not up to the first that fails.

Source: Sun, Mendlovic, Leviathan, Aharoni, Ro, Beirami, Suresh (2024), arXiv 2403.10444, algorithm 2.
Guarantee: distribution. With p_i and q_i the target's and the drafts' laws of token i, and x_i the drafts: P_0 = 1 and
P_i = min(1, P_{i-1} p_i(x_i) / q_i(x_i)) is how much of the chain up to i may be kept in all; S_i is the sum of
(P_i p_{i+1} - q_{i+1})+, which is what the drafts after i cannot give. The chain is cut after the last i whose test
succeeds, of probability P_i at the last draft and S_i / (S_i + 1 - P_i) before it, and the next token drawn from
(P_i p_{i+1} - q_{i+1})+. No rule for a chain accepts more, and the ratio test one by one never does.

Tests look ahead of the cut, so their noise, and that of the drafts, must be new in each step (`place_in_step`).
"""

from __future__ import annotations

import torch

from outpace.accept.match import sample_and_match
from outpace.accept.nodes import chance_of, decide, is_real, left_over, node_laws
from outpace.errors import ConfigError
from outpace.sampling import place_in_step
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["block_verification"]


def block_verification(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Accept a chain of sampled drafts.

    Args:
        proposal: a chain with its law; deterministic drafts get sample and match, which is this rule for them.
        scores: logits [B, 1 + W, V].
        view: whose sampler draws.

    Raises:
        ConfigError: the proposal is a tree.
    """
    if proposal.parent is not None:
        raise ConfigError("Block verification takes chains, not trees.", "Use traversal verification for trees.")
    if proposal.law is None or proposal.tokens.shape[1] == 0:
        return sample_and_match(proposal, scores, view)
    target, draft, real = node_laws(proposal, scores, view), proposal.law.probs.double(), is_real(proposal)
    device, width = target.device, proposal.tokens.shape[1]
    token = proposal.tokens.unsqueeze(-1)
    ratio = chance_of(target[:, :width].gather(-1, token), draft.gather(-1, token)).squeeze(-1)
    kept = [torch.ones_like(ratio[:, 0])]  # P_0, P_1, ...
    for i in range(width):
        kept.append((kept[-1] * ratio[:, i]).clamp(max=1))
    share = torch.stack(kept, 1)

    # What follows a cut after i: the residual, or the target's own law behind the last draft.
    draft = torch.nn.functional.pad(draft.masked_fill(~real.unsqueeze(-1), 0), (0, 0, 0, 1))
    law, mass = left_over(share.unsqueeze(-1) * target, draft)
    mass = mass.squeeze(-1)
    lengths = torch.tensor(proposal.length, device=device).unsqueeze(1)
    node = torch.arange(width, device=device)
    chance = torch.where(node + 1 == lengths, share[:, 1:], chance_of(mass, mass + 1 - share)[:, 1:])
    # Numbered from the end, as leaf to root numbers its tests.
    place = place_in_step(torch.tensor(view.lengths, device=device).unsqueeze(1), (lengths - 1 - node).clamp(min=0))
    is_kept = view.sampler.accepts(chance, place) & real
    end = torch.where(is_kept, node, -1).amax(-1)
    return decide(proposal, scores, view, end, law[torch.arange(len(end), device=device), end + 1])
