"""Making a judge (`outpace.heads.judge`): tokens of the target's own, and others that turned out well or ill.

Paper: Bachmann et al. (2025), arXiv 2501.19309, Judge Decoding (section 4.2), whose right and wrong answers were picked
by hand. Here the target finishes each text behind the alternative, and what its end says decides.

    python -m outpace.train.judge stories --prompts beginnings.jsonl --out judge
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.heads.files import save_head
from outpace.heads.judge import JudgeNet
from outpace.heads.model import HeadModel
from outpace.train.sources import read_jsonl
from outpace.types import Adapter, Outputs

__all__ = ["Trial", "collect_trials", "main", "same_end", "train_judge"]

Verdict = Callable[[Sequence[int], Sequence[int]], bool]


@dataclass(frozen=True, slots=True)
class Trial:
    """A token that was put in the place of the target's own.

    Attributes:
        state: [hidden], the target's last state of the token.
        is_right: whether the text ended as it should.
    """

    state: Tensor
    is_right: bool


def same_end(count: int = 8) -> Verdict:
    """Return a verdict: a text is right if it ends in the same `count` tokens as the target's own."""
    return lambda own, other: list(own[-count:]) == list(other[-count:])


@torch.no_grad()
def collect_trials(
    target: Adapter,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    is_right: Verdict,
    *,
    every: int = 4,
    temperature: float = 1.0,
    slack: int = 8,
    seed: int = 0,
) -> list[Trial]:
    """Return trials of the target's own tokens, which are right, and of drawn ones in the same places.

    Args:
        target: a causal model.
        texts: prompts and the target's greedy answers.
        is_right: told the target's own answer and the one behind a drawn token.
        every: places apart at which tokens are tried.
        temperature: of the law that they are drawn from, the target's own token left out.
        slack: how much longer than the own answer another one may become.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for prompt, answer in texts:
        logits, states = _read(target, [*prompt, *answer])
        places = range(len(prompt), len(prompt) + len(answer) - 1, every)
        if not places:
            continue
        own = torch.tensor([answer[place - len(prompt)] for place in places])
        law = logits[[place - 1 for place in places]].double() / temperature
        law = law.scatter(1, own.unsqueeze(1), float("-inf")).softmax(-1).cpu()
        drawn = torch.multinomial(law, 1, generator=generator)[:, 0].tolist()
        starts = [[*prompt, *answer[: place - len(prompt)], token] for place, token in zip(places, drawn, strict=True)]
        ends, new = _finish(target, starts, len(prompt) + len(answer), answer[-1], slack)
        for place, end, state in zip(places, ends, new, strict=True):
            found.append(Trial(states[place].clone(), True))
            found.append(Trial(state, is_right(answer, end[len(prompt) :])))
    return found


def train_judge(target: Adapter, trials: Sequence[Trial], name: str = "") -> JudgeNet:
    """Return a judge fitted to trials.

    Raises:
        ConfigError: all of them turned out alike.
    """
    is_right = torch.tensor([trial.is_right for trial in trials])
    if not len(trials) or bool(is_right.all()) or not bool(is_right.any()):
        raise ConfigError("A judge needs right and wrong tokens, but all turned out alike.", "Try more texts.")
    states = torch.stack([trial.state for trial in trials]).cpu()
    offered = target.capabilities
    net = JudgeNet(JudgeNet.made_for(states.shape[1], offered.vocab_size, offered.num_layers, name))
    net.fit(states, is_right)
    HeadModel(net.to(target.dtype), target)  # checks that it fits, before anybody saves it
    return net


def _read(target: Adapter, text: list[int]) -> tuple[Tensor, Tensor]:
    """Return the logits [T, V] and last states [T, hidden] of a text."""
    cache = target.new_cache(1, len(text) + 1)
    tokens = torch.tensor([text], device=target.device)
    place = torch.arange(len(text), device=target.device).unsqueeze(0)
    scores = target.score(tokens, place, None, cache, None, Outputs(has_last=True))
    assert scores.last is not None  # it was asked for
    return scores.logits[0], scores.last[0]


def _finish(
    target: Adapter, starts: list[list[int]], length: int, end: int, slack: int
) -> tuple[list[list[int]], list[Tensor]]:
    """Let the target go on greedily behind each start, all rows side by side; return the texts, and its first states.

    A text ends where the own one's last token comes at or behind its place, or `slack` tokens later.
    """
    limit = length + slack
    cache: Cache = target.new_cache(len(starts), limit + 1)
    longest, device = max(map(len, starts)), target.device
    tokens = torch.tensor([text + [0] * (longest - len(text)) for text in starts], device=device)
    order, sizes = torch.arange(longest, device=device), torch.tensor([len(text) for text in starts], device=device)
    place = torch.where(order < sizes.unsqueeze(1), order, -1)
    texts, first = [list(text) for text in starts], torch.empty(0)
    while True:
        ask = (place >= 0).sum(1, keepdim=True).clamp(min=1) - 1
        scores = target.score(tokens, place, None, cache, ask, Outputs(has_last=True))
        cache.keep([range(int(n)) for n in (place >= 0).sum(1).tolist()])
        assert scores.last is not None  # it was asked for
        first = first if len(first) else scores.last[:, 0].clone()
        running = []
        for text, token, was_on in zip(
            texts, scores.logits[:, 0].argmax(-1).tolist(), place[:, 0].tolist(), strict=True
        ):
            if was_on >= 0:
                text.append(token)
            is_over = len(text) >= limit or (len(text) >= length and text[-1] == end)
            running.append(was_on >= 0 and not is_over)
        if not any(running):
            return texts, list(first)
        tokens = torch.tensor([[text[-1]] for text in texts], device=device)
        place = torch.tensor([[len(t) - 1 if on else -1] for t, on in zip(texts, running, strict=True)], device=device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Let a model answer prompts, try other tokens in its answers, and write a judge fitted to how that turned out."""
    from outpace.api.engine import load  # it imports most of the package

    parser = argparse.ArgumentParser(prog="python -m outpace.train.judge")
    parser.add_argument("model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with a text each")
    parser.add_argument("--out", type=Path, required=True, help="directory of the judge")
    parser.add_argument("--count", type=int, default=24, help="prompts")
    parser.add_argument("--max-tokens", type=int, default=40, help="of an answer")
    given = parser.parse_args(arguments)
    rows = list(itertools.islice(read_jsonl(given.prompts), given.count))
    if not rows or not all(isinstance(row.get("text"), str) for row in rows):
        raise ConfigError(f"{given.prompts} does not hold a text on every line.", 'Write {"text": "..."} on each.')
    prompts = [str(row["text"]) for row in rows]
    lm = load(given.model, is_compiled=False)
    texts = [(lm.encode(one), lm.generate(one, max_tokens=given.max_tokens).tokens) for one in prompts]
    trials = collect_trials(lm.target, texts, same_end(), every=5)
    net = train_judge(lm.target, trials, given.model)
    given.out.mkdir(parents=True, exist_ok=True)
    save_head(net, given.out)
    print(f"{len(trials)} tokens, {sum(not trial.is_right for trial in trials)} of them wrong: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
