"""Single questions to a server: prompts that arrive beside decoding, a warm prefix, its own cost, shared memory."""

from __future__ import annotations

import random
import re
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

from outpace.api.engine import LanguageModel
from outpace.bench.serving.client import Client
from outpace.bench.serving.load import Load, run_load, run_threads
from outpace.bench.serving.traffic import METHODS, make_traffic, with_method
from outpace.bench.stats import ratio_of_pairs
from outpace.errors import OutpaceError

__all__ = ["measure_arrivals", "measure_overhead", "measure_pages", "measure_prefix", "read_metrics"]

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{[^}]*\})? (\S+)$", re.MULTILINE)
_BLOCKS = re.compile(r'num_gpu_blocks="(\d+)"')
_BLOCK_SIZE = re.compile(r'block_size="(\d+)"')
_TAIL = 16  # tokens behind a shared prefix
_ARRIVALS = 8  # prompts at least, or loads at most, of a measurement


def _ids(count: int, vocab_size: int, rng: random.Random) -> list[int]:
    """Return random ids: a prompt that no cache holds."""
    return [rng.randrange(vocab_size // 8, vocab_size) for _ in range(count)]


def _greedy(prompt: Any, max_tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}


def measure_arrivals(
    url: str, model: str, method: str, vocab_size: int, *, clients: int, prompt_tokens: int, max_tokens: int
) -> dict[str, Any]:
    """Return what waiting there is between pieces while long prompts arrive, one behind the other.

    Args:
        url, model: of the server.
        method: how texts are written.
        vocab_size: V.
        clients: texts being written side by side, all the time.
        prompt_tokens: of each arriving prompt, of which nothing is cached.
        max_tokens: of each text.
    """
    rng, ended = random.Random(1), threading.Event()
    arrived, loads = list[int](), list[Load]()
    writers = random.Random(2)
    bodies = [with_method(_greedy(_ids(_TAIL, vocab_size, writers), max_tokens), method) for _ in range(clients)]

    def arrive() -> None:
        while not ended.is_set():
            run_load(url, model, [_greedy(_ids(prompt_tokens, vocab_size, rng), 1)], 1)
            arrived.append(prompt_tokens)

    def write() -> None:
        try:
            while len(arrived) < _ARRIVALS and len(loads) < _ARRIVALS:
                loads.append(run_load(url, model, bodies, clients))
        finally:
            ended.set()

    quiet = run_load(url, model, bodies, clients).figures()
    run_threads([arrive, write])
    load = Load([answer for one in loads for answer in one.answers], sum(one.seconds for one in loads))
    found = load.figures()
    return {
        "method": method,
        "clients": clients,
        "prompt_tokens": prompt_tokens,
        "prompts": len(arrived),
        "gap_p50_ms": found["gap_p50_ms"],
        "gap_p99_ms": found["gap_p99_ms"],
        "p99_over_p50": found["gap_p99_ms"] / found["gap_p50_ms"],
        "quiet_p50_ms": quiet["gap_p50_ms"],
        "quiet_p99_ms": quiet["gap_p99_ms"],
    }


def measure_prefix(
    url: str, model: str, vocab_size: int, *, prefix_tokens: int, rounds: int, max_tokens: int = 32
) -> dict[str, Any]:
    """Return the time to the first token with a prefix in the cache, without it, and of the tail alone.

    Args:
        url, model: of the server.
        vocab_size: V.
        prefix_tokens: of the shared prefix; each round has a fresh one.
        rounds: how often each is measured.
        max_tokens: written per request; a step's cost is taken from plain ones.
    """
    rng, times = random.Random(3), dict[str, list[float]]()
    steps, cached = list[float](), list[int]()
    for _ in range(rounds):
        prefix = _ids(prefix_tokens, vocab_size, rng)
        for name, head in (("cold", prefix), ("warm", prefix), ("tail", [])):
            body = with_method(_greedy([*head, *_ids(_TAIL, vocab_size, rng)], max_tokens), "off")
            (answer,) = run_load(url, model, [body], 1).answers
            times.setdefault(name, []).append(answer.first_s)
            steps.append(answer.token_s)
            if name == "warm":
                cached.append(int((answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0))
    step = statistics.median(steps)
    beyond = [(warm - tail) / step for warm, tail in zip(times["warm"], times["tail"], strict=True)]
    return {
        "prefix_tokens": prefix_tokens,
        **{f"{name}_ms": 1e3 * statistics.median(found) for name, found in times.items()},
        "step_ms": 1e3 * step,
        "steps_beyond_tail": statistics.median(beyond),
        "cached_tokens": statistics.median(cached),
    }


def measure_overhead(
    url: str, model: str, lm: LanguageModel, mix: Sequence[str], methods: Sequence[str], *, rounds: int, max_tokens: int
) -> list[dict[str, Any]]:
    """Return what the way over HTTP adds to the library's own time, at batch 1, by method.

    The same requests go to the server and to the model in this process, in turns; each pair is one ratio.

    Args:
        url, model: of the server.
        lm: the same model in this process.
        mix: prompt sets.
        methods: how texts are written.
        rounds: how often each prompt is measured.
        max_tokens: of each text.
    """
    rows = []
    for method in methods:
        pairs, is_equal, added = dict[str, list[float]](), list[bool](), list[float]()
        for turn in range(rounds + 1):
            for body in make_traffic(mix, lm.tokenizer, 2 * len(mix), max_tokens)[::2]:  # the greedy half
                served, text = _time_served(url, model, with_method(body, method))
                own, own_text = _time_own(lm, body, method)
                is_equal.append(text == own_text)
                if turn:  # the first turn warms up
                    pairs.setdefault(body["prompt"], []).append(served / own)
                    added.append(served - own)
        ratio = ratio_of_pairs(pairs)
        assert ratio is not None
        told = {"median": ratio.median, "low": ratio.low, "high": ratio.high}
        row = {"method": method, "ratio": told, "added_ms": 1e3 * statistics.median(added)}
        rows.append({**row, "pairs": ratio.pairs, "equal": sum(is_equal), "compared": len(is_equal)})
    return rows


def _time_served(url: str, model: str, body: dict[str, Any]) -> tuple[float, str]:
    (answer,) = run_load(url, model, [body], 1).answers
    return answer.total_s, answer.text


def _time_own(lm: LanguageModel, body: dict[str, Any], method: str) -> tuple[float, str]:
    began = time.perf_counter()
    settings = {name: body[name] for name in ("max_tokens", "seed", "temperature")}
    result = lm.generate(body["prompt"], method=METHODS.get(method, method), sampling="model", **settings)
    return time.perf_counter() - began, result.text


def read_metrics(text: str) -> dict[str, float]:
    """Return the samples of a /metrics page, summed over their labels."""
    found: dict[str, float] = {}
    for name, _, value in _SAMPLE.findall(text):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def measure_pages(
    url: str, model: str, vocab_size: int, *, rows: int, prefix_tokens: int, max_tokens: int
) -> dict[str, Any]:
    """Return the most pages in use while rows that share a prefix are written, and what they need at least.

    The page count is read from /metrics while they run, so texts have to be long enough to be seen.

    Raises:
        OutpaceError: the server tells no pages.
    """
    rng, ended = random.Random(4), threading.Event()
    prefix = _ids(prefix_tokens, vocab_size, rng)
    bodies = [_greedy([*prefix, *_ids(_TAIL, vocab_size, rng)], max_tokens) for _ in range(rows)]
    bodies = [with_method(body, "off") for body in bodies]
    run_load(url, model, bodies[:1], 1)  # the prefix is in the cache from now on
    seen: list[tuple[float, float]] = []
    client = Client(url)
    size, pages = _page_counts(client)

    def watch() -> None:
        while not ended.is_set():
            found = read_metrics(client.get("/metrics")[1])
            seen.append((found.get("vllm:num_requests_running", 0), found["vllm:kv_cache_usage_perc"] * pages))
            ended.wait(0.02)

    def write() -> None:
        try:
            run_load(url, model, bodies, rows)
        finally:
            ended.set()

    run_threads([watch, write])
    client.close()
    running = max((count for count, _ in seen), default=0)
    used = max((count for _, count in seen), default=0)
    needed = prefix_tokens // size + rows * -(-(_TAIL + max_tokens + prefix_tokens % size) // size)
    return {
        "rows": rows,
        "running": running,
        "page_size": size,
        "pages": used,
        "needed": needed,
        "ratio": used / needed,
    }


def _page_counts(client: Client) -> tuple[int, int]:
    """Return tokens per page, and pages, from the label set that vLLM's tools read."""
    status, text = client.get("/metrics")
    line = next((line for line in text.splitlines() if line.startswith("vllm:cache_config_info{")), "")
    size, pages = _BLOCK_SIZE.search(line), _BLOCKS.search(line)
    if status != 200 or size is None or pages is None or not int(size[1]) or not int(pages[1]):
        raise OutpaceError("The server tells no pages of a cache.", "Ask one whose engine pages its cache.")
    return int(size[1]), int(pages[1])
