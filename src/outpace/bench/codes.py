"""Codes of a codebook model that stand for a topic, and how much oftener it comes when they are forced.

    python -m outpace.bench.codes
    python -m outpace.bench.codes runs/stories-codes --topic "dog|puppy" --data data

Without a model: a toy whose texts are words of a topic, which now and then gives way to another. A small network learns
it, and is trained on as long with codebooks; the codes of each topic are forced.

With a model: codes are found in stories that it trains on: those chosen where a word of the topic is about to come,
and seldom elsewhere (by the logarithm of both rates' ratio, times the former). Texts are then drawn from beginnings
that do not name the topic, without codes and with each number of the best ones forced.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, numbers, run_command
from outpace.bench.corrected import opened
from outpace.bench.distinct import PROMPTS
from outpace.bench.held_out import text_states
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import CapabilityError, ConfigError
from outpace.models.codebooks import CodedTransformer
from outpace.train.data import find_data
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives import causal_loss
from outpace.train.objectives_codes import coded_loss, start_codes
from outpace.train.sources import tiny_stories

__all__ = ["activity", "main", "ranked", "run_codes", "run_toy", "topic_codes", "toy_networks", "toy_texts"]

TOPICS = 8  # of the toy


def activity(target: CodedTransformer, ids: Sequence[int]) -> Tensor:
    """Return [layers, T, C] bool: which codes a model chooses at each token of a text."""
    layers, found = target.layers, list[Tensor]()
    layers.seen = []
    try:
        text_states(target, [*ids, ids[-1]])  # all tokens but the last are read
        for layer, codes in enumerate(layers.codes):
            chosen = torch.cat(layers.seen[layer :: len(layers.codes)])
            found.append(torch.zeros(len(ids), len(codes), dtype=torch.bool).scatter_(1, chosen, True))
    finally:
        layers.seen = None
    return torch.stack(found)


def topic_codes(lm: LanguageModel, topic: str, texts: Sequence[str]) -> list[tuple[int, int, float]]:
    """Return (layer, code, score) of all codes, those that stand for a topic first.

    Args:
        lm: a codebook model.
        topic: a regular expression; places behind which a match of it begins are of the topic.
        texts: to look in.

    Raises:
        CapabilityError: the model has no codebooks.
        ConfigError: the topic comes in no text.
    """
    if not isinstance(lm.target, CodedTransformer) or lm.tokenizer is None:
        raise CapabilityError(f"{lm.name} has no codebooks.", "Train one: outpace train stories-codes.")
    pattern, seen = re.compile(topic), list[tuple[Tensor, Tensor]]()
    for text in texts:
        ids = lm.tokenizer.encode(text, is_special=False)[: lm.target.capabilities.max_positions - 2]
        ends = [len(lm.tokenizer.decode(ids[: at + 1])) for at in range(len(ids))]
        begins = [match.start() for match in pattern.finditer(lm.tokenizer.decode(ids))]
        is_topic = torch.tensor([any(0 <= begin - end <= 1 for begin in begins) for end in ends])
        seen.append((activity(lm.target, ids), is_topic))
    if not any(bool(is_topic.any()) for _, is_topic in seen):
        raise ConfigError(f"No text holds {topic!r}.", "Give another topic.")
    return ranked(seen)


def ranked(seen: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[int, int, float]]:
    """Return (layer, code, score) of all codes, the best first.

    Args:
        seen: of each text the codes that are chosen, [layers, T, C] bool, and the places of the topic, [T] bool.
    """
    active, is_topic = torch.cat([one for one, _ in seen], 1), torch.cat([places for _, places in seen])
    rates = [(active[:, here].sum(1) + 0.5).double() / (int(here.sum()) + 1) for here in (is_topic, ~is_topic)]
    score = rates[0] * (rates[0] / rates[1]).log()
    order = score.flatten().argsort(descending=True).tolist()
    size = score.shape[1]
    return [(at // size, at % size, float(score.flatten()[at])) for at in order]


def run_codes(
    model: str, topic: str, data: Path | None, counts: Sequence[int] = (0, 1, 2, 4), texts: int = 60, seeds: int = 4
) -> Report:
    """Find the codes of a topic, force them, and count texts that hold it.

    Args:
        model: a codebook model.
        topic: a regular expression.
        data: folder of public texts, which holds the stories.
        counts: numbers of codes that are forced, the best ones.
        texts: stories to look in.
        seeds: texts per beginning.

    Raises:
        ConfigError: no text is asked for, the topic comes nowhere, or more codes than are summed.
        CapabilityError: the model has no codebooks.
    """
    if min(texts, seeds) < 1:
        raise ConfigError("No texts were asked for.", "Ask for 1 or more.")
    lm, pattern = load(model), re.compile(topic)
    stories = [story for story, _ in zip(_naming(pattern, data), range(texts), strict=False)]
    ranked = topic_codes(lm, topic, stories)
    prompts = [prompt for prompt in PROMPTS[False] if not pattern.search(prompt)]
    rows = []
    for count in counts:
        forced = "+".join(f"{layer}.{code}" for layer, code, _ in ranked[:count])
        given: dict[str, Any] = {"law": f"codes:force={forced}", "max_tokens": 60, "temperature": 0.8}
        found = [result for seed in range(seeds) for result in lm.generate(prompts, seed=seed, **given)]
        held = sum(bool(pattern.search(result.text)) for result in found)
        words = sum(len(pattern.findall(result.text)) for result in found)
        num = sum(len(result.tokens) for result in found)
        rows.append({"forced": forced, "texts": 100 * held / len(found), "matches": 100 * words / num})
    cells = [[str(row["forced"] or "none"), f"{row['texts']:.1f}", f"{row['matches']:.2f}"] for row in rows]
    heads = ("codes forced", "texts with the topic, %", "matches per 100 tokens")
    asked = {"model": model, "topic": topic, "counts": list(counts), "texts": texts, "seeds": seeds}
    return new_report("codes", asked, describe(), rows, tables=[Table("", heads, cells)])


def toy_texts(count: int, seed: int) -> Tensor:
    """Return texts [count, 25] of the toy: words of a topic, which another takes over now and then."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randint(TOPICS, (count, 25), generator=generator)
    stays = torch.rand((count, 25), generator=generator) < 0.85
    for at in range(1, 25):
        topic[:, at] = torch.where(stays[:, at], topic[:, at - 1], topic[:, at])
    return 2 + 4 * topic + torch.randint(4, (count, 25), generator=generator)


def toy_networks(steps: int, seed: int) -> tuple[Llama, Llama]:
    """Return a plain network trained on the toy, and the same with codebooks, trained on as long."""
    shape = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=2, head_dim=16, ffn=48, vocab=2 + 4 * TOPICS, context=64)
    plain, coded = Llama(shape, seed), Llama(replace(shape, codes=48, chosen=4), seed)
    for network, loss_of in ((plain, causal_loss), (coded, coded_loss)):
        if network is coded:
            start_codes(coded, plain, toy_texts(16, -1), seed)
        optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3)
        for step in range(steps):
            loss_of(network, toy_texts(24, step + steps * (network is coded))).backward()
            optimiser.step()
            optimiser.zero_grad()
    return plain, coded


def run_toy(steps: int, seeds: int, counts: Sequence[int], seed: int = 0) -> Report:
    """Train on the toy; tell what codebooks cost, and how often a topic comes that is forced, the mean of all topics.

    Raises:
        ConfigError: no step, no text, or more codes than are summed.
    """
    if min(steps, seeds) < 1:
        raise ConfigError("No steps or no texts were asked for.", "Ask for 1 or more of each.")
    plain, coded = toy_networks(steps, seed)
    held = toy_texts(200, -2)
    with torch.no_grad():
        losses = [float(causal_loss(network, held)) for network in (plain, coded)]
    with TemporaryDirectory() as place:
        lm = LanguageModel(opened(coded, Path(place)))
    assert isinstance(lm.target, CodedTransformer)
    seen = [(activity(lm.target, text[:-1]), torch.tensor(text[1:])) for text in held[:60].tolist()]
    rows = []
    for count in counts:
        shares = []
        for topic in range(TOPICS):
            best = ranked([(active, (after - 2) // 4 == topic) for active, after in seen])[:count]
            law = "codes:force=" + "+".join(f"{layer}.{code}" for layer, code, _ in best)
            prompts = [text[:3] for text in toy_texts(6 * seeds, 7).tolist()]
            drawn = lm.generate(prompts, law=law, max_tokens=20, temperature=1.0, seed=seed)
            tokens = [token for one in drawn for token in one.tokens]
            shares.append(sum((token - 2) // 4 == topic for token in tokens) / len(tokens))
        rows.append({"count": count, "share": 100 * mean(shares)})
    cells = [[str(row["count"]), f"{row['share']:.1f}"] for row in rows]
    notes = [f"Held-out nats per token: {losses[0]:.3f} plain, {losses[1]:.3f} with codebooks."]
    asked = {"steps": steps, "seeds": seeds, "counts": list(counts), "seed": seed}
    table = Table("", ("codes forced", "tokens of the topic, %"), cells)
    return new_report("codes-toy", asked, describe(), rows, tables=[table], notes=notes, losses=losses)


def _naming(pattern: re.Pattern[str], data: Path | None) -> Any:
    return (story for story in tiny_stories().read(find_data(data)) if pattern.search(story))


def _work(given: argparse.Namespace) -> None:
    if given.model is None:
        report = run_toy(given.steps, given.seeds, given.counts)
    else:
        report = run_codes(given.model, given.topic, given.data, given.counts, given.texts, given.seeds)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("codes", __doc__, threads=1)
    parser.add_argument("model", nargs="?", help="directory of a codebook model; none = the toy")
    parser.add_argument("--steps", type=int, default=150, help="of the toy's networks (default: %(default)s)")
    parser.add_argument("--topic", default="dog|puppy", help="a regular expression (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--counts", type=numbers, default=[0, 1, 2, 4], help="codes forced, such as 0,1,2,4")
    parser.add_argument("--texts", type=int, default=60, help="stories to look in (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="texts per beginning (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
