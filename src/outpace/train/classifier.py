"""Train a classifier of unfinished canvases, for `ctrldiff`: will the text match a pattern?

    python -m outpace.train.classifier stories-block --data data --about "happy|smile" --out happy.json

Passages of public stories are labelled by the pattern. Every step of the training hides tokens anew, a share drawn for
each passage, so that the classifier learns what the rest says of the whole: on a canvas the rest is all there is. At
the end the model writes `texts` stories at several weights of the guidance, and the share that matches is told.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.canvas.classifier import TextClassifier
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.methods.diffusion.ctrldiff import CtrlDiff
from outpace.train.sources import tiny_stories

__all__ = ["fit", "main"]

_OPENINGS = ("Once upon a time", "One day,", "There was a", "Tom and his", "A bird", "In the park,", "It was", "Lily")


def fit(
    passages: Tensor, labels: Sequence[bool], vocab_size: int, steps: int = 400, decay: float = 3e-4, seed: int = 0
) -> TextClassifier:
    """Return the classifier that makes the labels likeliest, tokens hidden by chance, with a small quadratic penalty.

    Args:
        passages: [N, L] token ids.
        labels: [N] whether each has the attribute.
        vocab_size: V.
        steps: of Adam, over all passages each.
        decay: of the squared weights.
        seed: of what is hidden.
    """
    source = torch.Generator().manual_seed(seed)
    wanted = torch.tensor(labels, dtype=torch.float32)
    weights, bias = torch.zeros(vocab_size, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=0.05)
    for _ in range(steps):
        share = torch.rand(len(passages), 1, generator=source)
        is_seen = torch.rand(passages.shape, generator=source) < share
        odds = (weights[passages] * is_seen).sum(1) + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, wanted) + decay * weights.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return TextClassifier(float(bias.detach()), weights.detach().double().numpy())


def _passages(lm: LanguageModel, data: Path, size: int, most: int) -> Tensor:
    found = list[list[int]]()
    for story in tiny_stories().read(data):
        ids = lm.encode(story)
        found += [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
        if len(found) >= most:
            break
    if not found:
        raise ConfigError(f"No story has {size} tokens.", "Give a smaller --tokens.")
    return torch.tensor(found[:most])


def _work(given: argparse.Namespace) -> int:
    torch.set_num_threads(given.threads)
    lm = load(given.model)
    tokenizer, vocab = lm.tokenizer, lm.target.capabilities.vocab_size
    assert tokenizer is not None
    try:
        pattern = re.compile(given.about)
    except re.error as error:
        raise ConfigError(f"{given.about!r} is no pattern: {error}.", "Write a regular expression.") from error
    passages = _passages(lm, given.data, given.tokens, given.passages)
    labels = [pattern.search(tokenizer.decode(row)) is not None for row in passages.tolist()]
    if len({*labels}) < 2:
        raise ConfigError(f"All passages are alike under {given.about!r}.", "Give a pattern that some of them match.")
    held = max(1, len(passages) // 10)
    found = fit(passages[held:], labels[held:], vocab)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    kept = {"about": given.about, "bias": found.bias, "weights": np.round(found.weights, 5).tolist()}
    given.out.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    told = [found.log_odds(row.numpy()) > 0 for row in passages[:held]]
    right = float(np.mean([one == label for one, label in zip(told, labels[:held], strict=True)]))
    print(f"{right:.1%} of {held} held-out passages told right; {np.mean(labels):.1%} of all match")
    if given.texts:
        _compare(lm, load(given.judge), pattern, given)
    return 0


def _compare(lm: LanguageModel, judge: LanguageModel, pattern: re.Pattern[str], given: argparse.Namespace) -> None:
    """Print, by weight, how many texts match and how likely they are under a causal judge."""
    for weight in (0.0, 1.0, 2.0, 4.0):
        method = CtrlDiff(steps=16, classifier=str(given.out), weight=weight)
        matched, nats, count = 0, 0.0, 0
        for seed in range(given.texts):
            prompt = [*lm.end_tokens[:1], *lm.encode(_OPENINGS[seed % len(_OPENINGS)])]
            result = lm.generate(prompt, method=method, max_tokens=given.tokens, temperature=1.0, seed=seed)
            matched += pattern.search(result.text) is not None
            known = judge.score([*prompt, *result.tokens]).log_probs[-len(result.tokens) :]
            nats -= float(np.array(known, dtype=np.float64).sum())
            count += len(result.tokens)
        print(f"weight {weight:g}: {matched / given.texts:.1%} of {given.texts} texts match, {nats / count:.3f} nats")


def main(arguments: list[str] | None = None) -> int:
    """Label passages, fit, save; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m outpace.train.classifier", description="Train a classifier of unfinished canvases."
    )
    parser.add_argument("model", help="whose tokens the passages are made of, e.g. stories-block")
    parser.add_argument("--data", required=True, type=Path, help="folder of the public texts")
    parser.add_argument("--about", required=True, metavar="PATTERN", help="passages with a match have the attribute")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--passages", type=int, default=6000, help="to learn from")
    parser.add_argument("--tokens", type=int, default=48, help="of a passage")
    parser.add_argument("--texts", type=int, default=0, help="texts that are written at each weight; 0 = none")
    parser.add_argument("--judge", default="stories", help="the causal model that says how likely a text is")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args(arguments)
    return guarded(lambda _: _work(given), [])


if __name__ == "__main__":
    sys.exit(main())
