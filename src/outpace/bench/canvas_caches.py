"""What each cache policy of a canvas changes, and what it saves, beside decoding without a cache.

    python -m outpace.bench.canvas_caches stories-mask --limit 8 --max-tokens 64

Forced columns: both sides see the tokens of the uncached text; the divergence of the laws at the undecided places in
nats, mean and greatest, and the share of them whose likeliest token changes. Free column: the share of tokens that stay
when the cached side writes its own text. Positions: those forwarded after the prefill, as a share of the uncached ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.prompts import read_prompts
from outpace.canvas import Policy, make_policy
from outpace.errors import ConfigError, OutpaceError
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
    rows = [_HEADS, tuple("---" for _ in _HEADS)]
    for seen in found:
        numbers = (f"{seen.mean_kl:.4f}", f"{seen.worst_kl:.2f}", *_percent(seen))
        radius = str(seen.radius) if seen.policy in ("greedy", "free") else "-"
        rows.append((seen.policy, str(seen.refresh), radius, *numbers))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _percent(seen: Divergence) -> tuple[str, ...]:
    return tuple(f"{100 * share:.1f}%" for share in (seen.changed_share, seen.agreement, seen.positions_share))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        lm = load(options.model, dtype=options.dtype, generation_config="none")
        prompts = [prompt.text for prompt in read_prompts(options.prompts, options.limit)]
        method = MaskedDiffusion(block=options.block, per_step=options.per_step)
        sampling = Sampling(temperature=options.temperature)
        found = caches(lm, prompts, method, max_tokens=options.max_tokens, sampling=sampling, seed=options.seed)
    except OutpaceError as error:
        print(error)
        return 2
    print(table(found))
    if options.json:
        report: dict[str, Any] = {
            **vars(options),
            "torch": torch.__version__,
            "rows": [seen.to_dict() for seen in found],
        }
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m outpace.bench.canvas_caches", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a masked model: zoo name, directory or hub id")
    parser.add_argument("--prompts", default="stories", help="a shipped set, or a file")
    parser.add_argument("--limit", type=int, default=8, help="prompts used; 0 = all")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--block", type=int, default=0, help="places per block; 0 = the model's own, or 32")
    parser.add_argument("--per-step", type=int, default=1, help="places written per step")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", default="", help="write all figures to this file")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
