"""What each cache policy of a canvas changes, and what it saves, beside decoding without a cache.

    python -m outpace.bench.canvas_caches stories-mask --limit 8 --max-tokens 64

Forced columns: both sides see the tokens of the uncached text; the divergence of the laws at the undecided places in
nats, mean and greatest, and the share of them whose likeliest token changes. Free column: the share of tokens that stay
when the cached side writes its own text. Positions: those forwarded after the prefill, as a share of the uncached ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.prompts import read_prompts
from outpace.bench.report import Table, new_report
from outpace.canvas import Policy, make_policy
from outpace.errors import ConfigError
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.misfit import check_fit
from outpace.sampling import Sampler, Sampling, row_key
from outpace.trace.divergence import Divergence, divergence

__all__ = ["POLICIES", "caches", "main", "table"]

# A policy, its refresh interval, its radius.
POLICIES = (
    make_policy("block"),
    make_policy("prefix"),
    make_policy("dual"),
    make_policy("delayed", 8),
    make_policy("delayed"),
    make_policy("greedy", 8),
    make_policy("greedy"),
    make_policy("free", 8, 16),
    make_policy("free", 0, 16),
)
_HEADS = ("cache", "refresh", "radius", "mean KL", "max KL", "changed argmax", "tokens kept", "positions")


def caches(
    lm: LanguageModel,
    prompts: Sequence[str | Sequence[int]],
    method: CanvasMethod | None = None,
    policies: Sequence[Policy] = POLICIES,
    *,
    max_tokens: int = 64,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> list[Divergence]:
    """Return what each policy changes on a model, for one sampler.

    Args:
        lm: a masked model.
        prompts: texts to continue, or token ids.
        method: whose rule and blocks are used; None = masked diffusion at its defaults.
        policies: which; the exact block cache is left out where the model has none.
        max_tokens: places behind each prompt.
        sampling: temperature and cuts; None = greedy.
        seed: of every draw.

    Raises:
        ConfigError: no prompt.
        CapabilityError: the model writes from left to right.
    """
    if not prompts:
        raise ConfigError("There is no prompt to compare caches on.", "Name a set, or a file with prompts.")
    chosen = method or MaskedDiffusion()
    offered = lm.target.capabilities
    check_fit(chosen, offered)
    parts = chosen.parts(offered, lm.tokenizer)
    usable = [policy for policy in policies if policy.name != "block" or parts.canvas.block_size]
    keys = [row_key(seed, 0)] * len(prompts)
    sampler = Sampler(sampling or Sampling(), keys, [lm.end_tokens] * len(prompts))
    texts = [lm.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return divergence(lm.target, parts, texts, max_tokens, usable, sampler)


def table(found: Sequence[Divergence]) -> str:
    """Return the figures as a Markdown table."""
    cells = []
    for seen in found:
        radius = str(seen.radius) if seen.policy in ("greedy", "free") else "-"
        shares = [f"{100 * share:.1f}%" for share in (seen.changed_share, seen.agreement, seen.positions_share)]
        cells.append([seen.policy, str(seen.refresh), radius, f"{seen.mean_kl:.4f}", f"{seen.worst_kl:.2f}", *shares])
    return Table("", _HEADS, cells).markdown()


def _work(given: argparse.Namespace) -> None:
    lm = load(given.model, dtype=given.dtype, generation_config="none")
    prompts = [prompt.text for prompt in read_prompts(given.prompts, given.limit)]
    method = MaskedDiffusion(block=given.block, per_step=given.per_step)
    sampling = Sampling(temperature=given.temperature)
    found = caches(lm, prompts, method, max_tokens=given.max_tokens, sampling=sampling, seed=given.seed)
    print(table(found))
    if given.json:
        new_report("caches", vars(given), describe(), [seen.to_dict() for seen in found]).write(given.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = new_parser("canvas_caches", __doc__)
    parser.add_argument("model", help="a masked model: zoo name, directory or hub id")
    parser.add_argument("--prompts", default="stories", help="a shipped set, or a file")
    parser.add_argument("--limit", type=int, default=8, help="prompts used; 0 = all")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--block", type=int, default=0, help="places per block; 0 = the model's own, or 32")
    parser.add_argument("--per-step", type=int, default=1, help="places written per step")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
