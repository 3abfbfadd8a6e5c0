"""What a law over the next token holds, and what it costs.

    python -m outpace.bench.laws --model stories --max-tokens 40
    python -m outpace.bench.laws --reward DIR --read 20
    python -m outpace.bench.laws --speed 512

Of sampled texts, how many hold all keywords, or have an attribute, with and without the law, how likely they are
under the model, and how many forwards and how many tokens in them each written token took. With --speed: the
processor time of a step, on one thread, with a hidden Markov model of so many states (random tables, since any
numbers take the same time), beside plain decoding.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from outpace.api.engine import LanguageModel, load
from outpace.api.request import Options
from outpace.api.running import advance
from outpace.api.starting import start
from outpace.bench.distinct import PROMPTS
from outpace.failures import guarded
from outpace.laws.markov import Markov
from outpace.text.files import read_object

__all__ = ["KEYWORDS", "coverage", "main", "random_markov", "step_times"]

KEYWORDS = (
    *("dog+park", "boat+river", "cake+friend", "tree+bird", "rain+house", "red ball+mother", "king+apple"),
    *("frog+pond+jump", "doctor+sick+smile", "train+window+grandma"),
)


def random_markov(num_states: int, vocab_size: int, seed: int = 0) -> Markov:
    """Return a model with tables of random numbers in float32."""
    rng = np.random.default_rng(seed)
    shapes = ((num_states,), (num_states, num_states), (vocab_size, num_states))
    first, move, emit = (rng.random(shape, dtype=np.float32) for shape in shapes)
    return Markov(first / first.sum(), move / move.sum(1, keepdims=True), emit / emit.sum(0))


def step_times(lm: LanguageModel, law: str, max_tokens: int, rounds: int, temperature: float) -> tuple[float, float]:
    """Return milliseconds of processor time per step, plain and under a law: the least of rounds in turn."""
    found: dict[str, list[float]] = {"": [], law: []}
    for number in range(rounds):
        for own, times in found.items():
            asked: Options = {"max_tokens": max_tokens, "seed": number, "law": [own] if own else []}
            job = start(lm, PROMPTS[False][0], {**asked, "ignore_eos": True, "temperature": temperature})
            began = time.process_time()
            for _ in advance(job, None):
                pass
            times.append(1000 * (time.process_time() - began) / max_tokens)
    plain, guided = map(min, found.values())
    return plain, guided


def coverage(
    lm: LanguageModel, law: str, holds: Callable[[str], bool], max_tokens: int, seeds: int, temperature: float
) -> tuple[float, float, float, float]:
    """Return the share in per cent of texts that hold what is wanted, and three means per token that was written.

    These are its log-probability, forwards and tokens in them, of which the prompts' are left out.
    """
    hits, scores, spent = list[bool](), list[float](), list[tuple[int, int, int]]()
    for seed in range(seeds):
        asked: Options = {"max_tokens": max_tokens, "law": [law] if law else [], "seed": seed, "record": ["log_probs"]}
        asked |= {"temperature": temperature}
        for result in lm.generate(list(PROMPTS[False]), **asked):
            hits.append(holds(result.text))
            scores += result.log_probs
            usage = result.usage
            spent.append((usage.num_emitted, usage.target_nfe, usage.positions_scored))
    written, forwards, read = (sum(column) for column in zip(*spent, strict=True))
    return 100 * statistics.mean(hits), statistics.mean(scores), forwards / written, read / written


def main(arguments: list[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m outpace.bench.laws", description=__doc__)
    parser.add_argument("--model", default="stories", help="zoo name or directory of a causal decoder")
    parser.add_argument("--hmm", default="auto", metavar="DIR", help="the distilled model; auto = beside the model")
    parser.add_argument("--attribute", metavar="DIR", help="measure an attribute of outpace.train.attribute instead")
    parser.add_argument("--reward", metavar="DIR", help="measure a head of outpace.train.reward instead")
    parser.add_argument(
        "--read", type=int, default=0, metavar="K", help="measure the head on K tokens read one by one too"
    )
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1, help="texts per prompt and keywords")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--speed", type=int, default=0, metavar="STATES", help="measure the time of a step instead")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)
    lm = load(asked.model, threads=1 if asked.speed else None)
    if asked.speed:
        return _speed(lm, asked)
    given = (asked.max_tokens, asked.seeds, asked.temperature)
    print("| law | texts as wanted, % | nats per token under the model | forwards per token | tokens read per token |")
    print("|---|---|---|---|---|")
    if asked.attribute or asked.reward:
        own = f"reward:head={asked.reward}" if asked.reward else f"hmm:attribute={asked.attribute},model={asked.hmm}"
        facts = read_object(Path(asked.reward or asked.attribute) / "config.json")
        pattern = facts["attribute"].removeprefix("without ")
        kinds = ["", f",read={asked.read}"] if asked.reward and asked.read else [""]
        for kind, weight in itertools.product(kinds, (0.0, 1.0, 2.0, 4.0)):
            found = coverage(lm, f"{own}{kind},weight={weight}", lambda text: re.search(pattern, text) is None, *given)
            _tell(f"{own.split('=')[0]}=...{kind},weight={weight:g}", found)
        return 0
    for law in ("", f"hmm:keywords={{}},model={asked.hmm}"):
        every = [coverage(lm, law.format(words), _all_in(words), *given) for words in KEYWORDS]
        _tell(law and "hmm:keywords=...", [statistics.mean(column) for column in zip(*every, strict=True)])
    return 0


def _tell(law: str, found: Sequence[float]) -> None:
    share, score, forwards, read = found
    print(f"| {law} | {share:.1f} | {-score:.3f} | {forwards:.2f} | {read:.1f} |", flush=True)


def _all_in(words: str) -> Callable[[str], bool]:
    return lambda text: all(word in text for word in words.split("+"))


def _speed(lm: LanguageModel, asked: argparse.Namespace) -> int:
    """Print milliseconds per step with and without a law whose keyword is never likely."""
    with tempfile.TemporaryDirectory() as folder:
        random_markov(asked.speed, lm.target.capabilities.vocab_size).save(Path(folder))
        law = f"hmm:keywords=zebra+piano,model={folder}"
        plain, guided = step_times(lm, law, asked.max_tokens, asked.rounds, asked.temperature)
    print(
        f"plain {plain:.3f} ms per step, with {asked.speed} states {guided:.3f} ms: {100 * (guided / plain - 1):+.1f}%"
    )
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
