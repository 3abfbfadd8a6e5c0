"""Train the policy of `ctrldiff`: how long should the block be that begins here?

    python -m outpace.train.block_policy stories-block --out policy.json

The model writes texts in blocks of drawn sizes, `steps` forwards each. A block is worth the log-likelihood of its
tokens under a causal judge, less `price` nats for each of its forwards; what it is worth beyond the mean of as many
tokens, and than a linear critic expects, makes the size that was drawn likelier (REINFORCE, Williams 1992).
At the end other texts are written with the policy, with each fixed size, and with sizes by chance, as often as the
policy takes them. For research: a policy fits the texts that it has seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.canvas.block_policy import BlockPolicy
from outpace.canvas.row import CanvasRow, Floats, Ids
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.methods.diffusion.ctrldiff import CtrlDiff

__all__ = ["PolicyTrainer", "Trial", "main", "surplus", "write_text"]

_OPENINGS = ("Once upon a time", "One day,", "There was a", "Tom and his", "A bird", "In the park,", "It was", "Lily")


@dataclass(frozen=True)
class _Drawing(CtrlDiff):
    """Sizes by chance, noted as (place, state, choice)."""

    size_policy: str = "drawn"
    known: Any = None
    draw: Any = None
    log: Any = field(default_factory=list, compare=False)

    def learned(self) -> BlockPolicy:
        return self.known  # type: ignore[no-any-return]

    def pick(self, policy: BlockPolicy, known: Floats, row: CanvasRow) -> int:
        logits = policy.logits(known)
        choice = int((logits - np.log(-np.log(self.draw.uniform(size=len(logits))))).argmax())
        self.log.append((row.base, known, choice))
        return choice


@dataclass(frozen=True, slots=True)
class Trial:
    """One text of N blocks.

    Attributes:
        states: [N, D + K] what was known where each block began.
        choices: [N] the size that was taken.
        tokens: [N] tokens of each block; an end token is the last one's last.
        gains: [N] log-likelihood of its tokens under the judge, less the price of its forwards.
        nats, forwards: of the whole text.
    """

    states: Floats
    choices: Ids
    tokens: Ids
    gains: Floats
    nats: float
    forwards: int


def write_text(
    lm: LanguageModel, judge: LanguageModel, prompt: Sequence[int], method: _Drawing, price: float, **options: Any
) -> Trial:
    """Let the model write one text in blocks of drawn sizes, and return what its blocks were worth."""
    method.log.clear()
    result = lm.generate(list(prompt), method=method, **options)
    known = np.array(judge.score([*prompt, *result.tokens]).log_probs[-len(result.tokens) :])
    begins = [place - len(prompt) for place, _, _ in method.log]
    ends = [*begins[1:], len(result.tokens)]
    blocks = [(max(begin, 0), end) for begin, end in zip(begins, ends, strict=True)]
    # A step writes at least one token, so that short blocks take as many forwards as they have places.
    gains = [known[begin:end].sum() - price * min(method.steps, end - begin) for begin, end in blocks]
    return Trial(
        np.stack([state for _, state, _ in method.log]),
        np.array([choice for _, _, choice in method.log]),
        np.array([end - begin for begin, end in blocks]),
        np.array(gains),
        -float(known.sum()),
        result.usage.target_nfe,
    )


def surplus(trials: Sequence[Trial]) -> Floats:
    """Return what each block of all trials was worth beyond the mean of as many tokens, in units of its deviation."""
    gains, tokens = (np.concatenate([getattr(one, name) for one in trials]) for name in ("gains", "tokens"))
    # Sizes share a text out: a long block is worth more than a short one only if it is so per token.
    beyond: Floats = gains - gains.sum() / max(tokens.sum(), 1) * tokens
    return beyond / max(float(beyond.std()), 1e-9)


class PolicyTrainer:
    """A policy and its optimiser.

    Args:
        sizes: to choose from, ascending.
        width: numbers that it reads, D + K.
        vocab_size: of the model.
        hidden: units of its layer.
        rate: learning rate.
        entropy: weight of the policy's own entropy, so that it goes on trying.
    """

    def __init__(
        self, sizes: Sequence[int], width: int, vocab_size: int, hidden: int, rate: float, entropy: float
    ) -> None:
        source = torch.Generator().manual_seed(0)
        self.sizes, self.vocab_size, self.entropy = tuple(sizes), vocab_size, entropy
        first = torch.randn(hidden, width + 1, generator=source, dtype=torch.float64) / width**0.5
        self.hidden, self.out = first.requires_grad_(), torch.zeros(len(sizes), hidden + 1, dtype=torch.float64)
        self.critic = torch.zeros(width + 1, dtype=torch.float64)  # linear: what a place is worth, whatever is drawn
        learned = [self.hidden, self.out.requires_grad_(), self.critic.requires_grad_()]
        self.optimiser = torch.optim.Adam(learned, lr=rate)

    @property
    def policy(self) -> BlockPolicy:
        """What has been learned so far."""
        return BlockPolicy(
            self.sizes, self.hidden.detach().numpy().copy(), self.out.detach().numpy().copy(), self.vocab_size
        )

    def learn(self, states: Floats, choices: Ids, worth: Floats) -> None:
        """Take one step of the policy gradient, and one of the critic.

        Args:
            states: [N, D + K] what was known.
            choices: [N] what was drawn in each.
            worth: [N] how much better than expected it was.
        """
        known = torch.from_numpy(states)
        inner = torch.tanh(known @ self.hidden[:, :-1].T + self.hidden[:, -1])
        logs = (inner @ self.out[:, :-1].T + self.out[:, -1]).log_softmax(-1)
        drawn = logs.gather(-1, torch.from_numpy(choices)[:, None])[:, 0]
        spread: Tensor = -(logs.exp() * logs).sum(-1)
        missed = torch.from_numpy(worth) - (known @ self.critic[:-1] + self.critic[-1])
        loss = (missed.square() - drawn * missed.detach() - self.entropy * spread).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def _constant(sizes: Sequence[int], shares: Sequence[float], width: int, vocab_size: int) -> BlockPolicy:
    """Return the policy that takes sizes so often, whatever it reads."""
    out = np.log(np.maximum(np.array(shares, dtype=np.float64), 1e-300))[:, None]
    return BlockPolicy(tuple(sizes), np.zeros((0, width + len(sizes) + 1)), out, vocab_size)


class _Desk:
    """The models, and how texts are written."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.lm, self.judge, self.given = load(given.model), load(given.judge), given
        self.draw, self.vocab = np.random.default_rng(0), self.lm.target.capabilities.vocab_size
        self.width = int(self.lm.target.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1])

    def trial(self, policy: BlockPolicy, seed: int) -> Trial:
        text = _OPENINGS[seed % len(_OPENINGS)]
        prompt = [*self.lm.end_tokens[:1], *self.lm.encode(text)]
        method = _Drawing(steps=self.given.steps, known=policy, draw=self.draw)
        options = {"max_tokens": self.given.max_tokens, "temperature": self.given.temperature, "seed": 20_000 + seed}
        return write_text(self.lm, self.judge, prompt, method, self.given.price, **options)

    def tell(self, name: str, policy: BlockPolicy, num: int) -> list[Trial]:
        """Print what a policy is worth on texts that it was not trained on."""
        trials = [self.trial(policy, 50_000 + seed) for seed in range(num)]
        tokens = sum(int(one.tokens.sum()) for one in trials)
        nats, forwards = sum(one.nats for one in trials), sum(one.forwards for one in trials)
        gain = sum(float(one.gains.sum()) for one in trials) / tokens
        print(f"{name:>16}: {tokens / forwards:.2f} tokens per forward, {nats / tokens:.3f} nats, worth {gain:.3f}")
        return trials


def _sharp(policy: BlockPolicy) -> BlockPolicy:
    """Return the policy that takes what it finds likeliest, as decoding does."""
    return BlockPolicy(policy.sizes, policy.hidden, policy.out * 1e6, policy.vocab_size)


def _work(given: argparse.Namespace) -> int:
    sizes = sorted({int(size) for size in given.sizes.split(",")})
    if sizes[0] < 1:
        raise ConfigError(f"A block of {sizes[0]} places is none.", "Name sizes from 1 on, such as --sizes 4,8,16.")
    given.out.parent.mkdir(parents=True, exist_ok=True)  # before the minutes that the texts take
    torch.set_num_threads(given.threads)
    desk = _Desk(given)
    trainer = PolicyTrainer(sizes, desk.width + len(sizes), desk.vocab, 16, 0.01, 0.02)
    for step in range(given.updates):
        trials = [desk.trial(trainer.policy, step * given.texts + index) for index in range(given.texts)]
        states, choices = (np.concatenate([getattr(one, name) for one in trials]) for name in ("states", "choices"))
        trainer.learn(states, choices, surplus(trials))
        if (step + 1) % 10 == 0:
            taken = Counter(sizes[choice] for choice in choices)
            gain = sum(one.gains.sum() for one in trials) / sum(one.tokens.sum() for one in trials)
            print(f"update {step + 1}/{given.updates}: worth {gain:.3f} per token, sizes {dict(sorted(taken.items()))}")
    found = trainer.policy
    held = {"sizes": sizes, "vocab_size": found.vocab_size, "hidden": np.round(found.hidden, 6).tolist()}
    given.out.write_text(json.dumps(held | {"out": np.round(found.out, 6).tolist()}) + "\n", encoding="utf-8")
    trials = desk.tell("policy", _sharp(found), given.held_out)
    counts = Counter(int(choice) for one in trials for choice in one.choices)
    shares = [float(counts[at]) for at in range(len(sizes))]
    desk.tell("by chance", _constant(sizes, shares, desk.width, desk.vocab), given.held_out)
    for at, size in enumerate(sizes):
        desk.tell(
            f"always {size}", _constant(sizes, np.eye(len(sizes))[at].tolist(), desk.width, desk.vocab), given.held_out
        )
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Train a policy, write it, compare it; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m outpace.train.block_policy", description="Train the policy of ctrldiff."
    )
    parser.add_argument("model", help="a masked model, e.g. stories-block")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--judge", default="stories", help="the causal model that says how likely a text is")
    parser.add_argument("--sizes", default="4,8,16", help="places of a block to choose from, by commas")
    parser.add_argument("--steps", type=int, default=4, help="forwards for each block")
    parser.add_argument("--price", type=float, default=3.0, help="nats that a forward costs")
    parser.add_argument("--updates", type=int, default=60, help="steps of the policy gradient")
    parser.add_argument("--texts", type=int, default=8, help="texts for each of them")
    parser.add_argument("--held-out", type=int, default=48, help="texts that are written to compare")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args(arguments)
    return guarded(lambda _: _work(given), [])


if __name__ == "__main__":
    sys.exit(main())
