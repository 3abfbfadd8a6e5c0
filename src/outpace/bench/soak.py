"""Many short requests from many clients, with clients that leave, give up and send nonsense: nothing may go wrong.

    python -m outpace.bench.soak --requests 1000 --clients 16
    python -m outpace.bench.soak --requests 100000 --clients 64 --json soak.json

Every whole answer has to be, token for token, what the library writes alone; no answer may be lost, none may be
another request's, and the server's memory has to stay flat. --resume goes on where the file of --json stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe, process_memory
from outpace.bench.prompts import read_prompts
from outpace.bench.report import Report, Table, new_report, read_report
from outpace.bench.serving.client import Answer, Client, LostError
from outpace.bench.serving.load import run_threads
from outpace.bench.serving.probes import read_metrics
from outpace.bench.serving.servers import serve_ours, served_name, tidy_end
from outpace.bench.serving.traffic import COMPLETIONS
from outpace.errors import ConfigError, OutpaceError

__all__ = ["Question", "Soak", "main", "make_questions", "soak"]

_KINDS = {"whole": 40, "stream": 30, "leave": 12, "give up": 4, "bad": 10, "half": 4}  # of a hundred
_WRONG = ("lost", "crossed", "differing", "misjudged", "stuck")  # none of these may ever be counted
_LAWS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 20, "frequency_penalty": 0.3},
    {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.1},
)
_METHODS = ("auto", "autoregressive", "prompt-lookup")
_BAD: tuple[tuple[bytes | dict[str, Any], str], ...] = (
    (b"{", "no JSON"),
    (b"", "nothing"),
    (b'{"prompt": "a", "max_tokens": 1e999}', "a number that is none"),
    ({"prompt": "a", "max_tokens": -1}, "a negative count"),
    ({"prompt": "a", "temperature": "hot"}, "text for a number"),
    ({"prompt": "a", "model": "../../etc/passwd"}, "a path for a model"),
    ({"prompt": "a", "model": "no-such-model"}, "a model that is not there"),
    ({"prompt": "a", "n": 1_000_000}, "too many samples"),
    ({"prompt": [10_000_000]}, "a token outside the vocabulary"),
    ({"prompt": "word " * 20_000}, "a prompt above the context"),
    ({"prompt": "a", "outpace": {"method": "no-such-method"}}, "a method that is not there"),
    ({"messages": 3}, "no prompt"),
)
_EVERY = 1000  # requests between two files
_SAMPLES = 50  # of memory
_PATIENCE = 300  # looks at what still runs, a tenth of a second apart
_WARM = 5000  # requests until caches and pools have their size


@dataclass(frozen=True, slots=True)
class Question:
    """A request whose answer is known: its body, and what the library writes."""

    body: dict[str, Any]
    tokens: list[int]
    text: str


@dataclass(slots=True)
class Soak:
    """What came of a soak, so far.

    Attributes:
        done: requests made.
        counts: how they ended, by kind: "stream: equal", "bad: refused 400", "lost", "crossed", ...
        memory: (requests made, bytes that the server holds, pages of its cache in use) along the way.
        problems: the first of what went wrong, in sentences.
    """

    done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[int, int, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def growth(self) -> float:
        """Return how much more the server holds in the last quarter than in the second one, as a share."""
        held = [size for _, size, _ in self.memory if size]
        if len(held) < 8:
            return 0.0
        quarter = len(held) // 4
        early, late = sorted(held[quarter : 2 * quarter]), sorted(held[-quarter:])
        return late[quarter // 2] / early[quarter // 2] - 1.0

    @property
    def num_wrong(self) -> int:
        """Requests that came out wrong."""
        return sum(self.counts[name] for name in _WRONG)


def make_questions(lm: LanguageModel, count: int = 60, seed: int = 0) -> list[Question]:
    """Return questions with the library's own answers.

    Args:
        lm: what writes them, one by one.
        count: questions.
        seed: of prompts, lengths and settings.
    """
    rng, found = random.Random(seed), list[Question]()
    prompts = [" ".join(prompt.text.split()[:24]) for name in ("stories", "ask-open") for prompt in read_prompts(name)]
    for number in range(count):
        law, method = _LAWS[number % len(_LAWS)], _METHODS[number // len(_LAWS) % len(_METHODS)]
        prompt = rng.choice(prompts)
        asked: dict[str, Any] = {"max_tokens": rng.randrange(2, 20), "seed": rng.randrange(1 << 40), **law}
        if number % 4 == 3:
            asked["stop"] = [rng.choice((".", " the", "\n"))]
        result = lm.generate(prompt, method=method, sampling="model", **asked)
        body = {"prompt": prompt, **asked, "outpace": {"method": method}, "return_token_ids": True}
        found.append(Question(body, list(result.tokens), result.text))
    return found


def soak(
    url: str,
    model: str,
    questions: Sequence[Question],
    *,
    requests: int,
    clients: int,
    so_far: Soak | None = None,
    held: Callable[[], int] = lambda: 0,
    told: Callable[[Soak], None] = lambda state: None,
    seed: int = 0,
) -> Soak:
    """Make requests, side by side, and judge every answer.

    Args:
        url, model: of the server.
        questions: drawn at random; request number i is the same in every soak of the seed.
        requests: to have been made in the end.
        clients: side by side.
        so_far: of an earlier soak, which goes on.
        held: the bytes that the server holds.
        told: called now and then with what came of it so far.
        seed: of kinds and questions.
    """
    state, guard = so_far or Soak(), threading.Lock()
    following = iter(range(state.done, requests))
    known = {tuple(question.tokens) for question in questions}
    every = max(1, requests // _SAMPLES)

    def serve() -> None:
        client = Client(url)
        while True:
            with guard:
                number = next(following, None)
            if number is None:
                break
            outcome, problem = _one(client, url, model, questions, known, random.Random(f"{seed}-{number}"))
            with guard:
                state.done += 1
                state.counts[outcome] += 1
                if problem and len(state.problems) < 20:
                    state.problems.append(f"request {number}: {problem}")
                if state.done % every == 0:
                    state.memory.append((state.done, held(), _pages(url)))
                if state.done % _EVERY == 0:
                    told(state)
        client.close()

    run_threads([serve] * clients)
    if stuck := _stuck(url):
        state.counts["stuck"] += stuck
        state.problems.append(f"{stuck} requests run on, though every client has gone.")
    return state


def _stuck(url: str) -> int:
    """Return how many requests a server still runs or keeps waiting when its clients have been gone for a while."""
    left = 0
    for _ in range(_PATIENCE):
        found = _metrics(url)
        left = int(found.get("vllm:num_requests_running", 0) + found.get("vllm:num_requests_waiting", 0))
        if not left:
            break
        time.sleep(0.1)
    return left


def _one(
    client: Client,
    url: str,
    model: str,
    questions: Sequence[Question],
    known: set[tuple[int, ...]],
    rng: random.Random,
) -> tuple[str, str]:
    """Make one request; return how it ended, and what was wrong with that."""
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    question = rng.choice(questions)
    body = {**question.body, "model": model}
    if kind != "whole":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if kind == "half":
        client.send_half(COMPLETIONS, json.dumps(body).encode())
        return "half: left", ""
    if kind == "give up":
        return _give_up(url, body, rng)
    if kind == "bad":
        return _send_bad(client, model, *rng.choice(_BAD))
    leave_after = rng.randrange(1, 4) if kind == "leave" else 0
    try:
        answer = client.post(COMPLETIONS, body, leave_after=leave_after)
    except LostError as error:
        return "lost", f"{kind}: {error}"
    if answer.status in (429, 503) and answer.error:
        return f"{kind}: told to come again ({answer.status})", ""
    return _judge(kind, question, answer, known)


def _judge(kind: str, question: Question, answer: Answer, known: set[tuple[int, ...]]) -> tuple[str, str]:
    if answer.status != 200 or answer.error:
        return "lost", f"{kind}: answered {answer.status}: {answer.error.get('message', '')}"
    is_left = not answer.finish
    count = len(answer.tokens)
    if is_left and kind == "leave":
        is_right = answer.tokens == question.tokens[:count] and question.text.startswith(answer.text)
    else:
        is_right = answer.tokens == question.tokens and answer.text == question.text
        is_right = is_right and answer.num_tokens == len(question.tokens)
    if is_right:
        return f"{kind}: equal", ""
    where = "crossed" if tuple(answer.tokens) in known else "differing"
    return where, f"{kind}: {question.body} gave {answer.tokens} {answer.text!r}, not {question.tokens}"


def _give_up(url: str, body: Mapping[str, Any], rng: random.Random) -> tuple[str, str]:
    """Ask, and wait for a few milliseconds only."""
    client = Client(url, timeout_s=rng.choice((0.001, 0.01, 0.05)))
    try:
        client.post(COMPLETIONS, body)
        return "give up: answered in time", ""
    except LostError:
        return "give up: left", ""
    finally:
        client.close()


def _send_bad(client: Client, model: str, body: bytes | dict[str, Any], what: str) -> tuple[str, str]:
    try:
        answer = client.post(COMPLETIONS, body if isinstance(body, bytes) else {"model": model, **body})
    except LostError as error:
        return "lost", f"bad, {what}: {error}"
    message = str(answer.error.get("message", ""))
    if 400 <= answer.status < 500 and message and "Traceback" not in message:
        return f"bad: refused {answer.status}", ""
    return "misjudged", f"bad, {what}: answered {answer.status} {message!r}"


def _pages(url: str) -> float:
    """Return the share of the cache's pages that are in use; 0 where the server does not tell."""
    return _metrics(url).get("vllm:kv_cache_usage_perc", 0.0)


def _metrics(url: str) -> dict[str, float]:
    client = Client(url)
    try:
        return read_metrics(client.get("/metrics")[1])
    except LostError:
        return {}
    finally:
        client.close()


def _report(given: argparse.Namespace, facts: Mapping[str, Any], state: Soak) -> Report:
    rows = [{"outcome": name, "requests": count} for name, count in sorted(state.counts.items())]
    cells = [[name, str(count)] for name, count in sorted(state.counts.items())]
    growth = state.growth()
    notes = [
        f"{state.done} requests; {state.num_wrong} lost, crossed, differing, misjudged or stuck.",
        f"Memory in the last quarter against the second: {growth:+.1%}"
        + (f"; too few requests to judge ({_WARM} are enough)." if state.done < _WARM else "."),
        *state.problems,
    ]
    more: dict[str, Any] = {"done": state.done, "memory": state.memory, "growth": growth, "problems": state.problems}
    options = {name: value for name, value in vars(given).items() if name not in ("url", "serve")}
    table = Table("", ("outcome", "requests"), cells)
    return new_report("soak", options, facts, rows, tables=[table], notes=notes, **more)


def _resumed(given: argparse.Namespace) -> Soak:
    if not given.resume or given.json is None or not given.json.exists():
        return Soak()
    found = read_report(given.json).document
    if found["kind"] != "soak":
        raise ConfigError(f"{given.json} is not of a soak.", "Name a file that this command wrote.")
    counts = Counter({row["outcome"]: row["requests"] for row in found["rows"]})
    return Soak(found["done"], counts, [tuple(sample) for sample in found["memory"]], found["problems"])


def _work(given: argparse.Namespace) -> None:
    facts, state = describe(), _resumed(given)
    questions = make_questions(load(given.model, threads=given.threads or None), given.questions)
    with ExitStack() as stack:
        stack.enter_context(tidy_end())
        url, held = given.url, lambda: 0
        if not url:
            server = stack.enter_context(serve_ours(given.model, threads=given.threads, arguments=given.serve))
            url, held = server.url, lambda: process_memory(server.pid)

        def told(found: Soak) -> None:
            print(f"{found.done}/{given.requests} requests, {found.num_wrong} wrong", file=sys.stderr, flush=True)
            _report(given, facts, found).write(given.json)

        sizes = {"requests": given.requests, "clients": given.clients}
        state = soak(url, served_name(url, given.model), questions, so_far=state, held=held, told=told, **sizes)
    report = _report(given, facts, state)
    print(report.markdown())
    report.write(given.json)
    if state.num_wrong:
        raise OutpaceError(f"{state.num_wrong} of {state.done} requests came out wrong.", state.problems[0])
    if state.done >= _WARM and state.growth() > given.growth:
        raise OutpaceError(
            f"The server's memory grew by {state.growth():.1%}.", "Look at memory in the file of --json."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what came of it; return the exit status, 0 only if nothing went wrong."""
    parser = new_parser("soak", __doc__)
    parser.add_argument("--model", default="stories", help="a shipped model, a directory, a GGUF file or a hub id")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=64, help="side by side")
    parser.add_argument("--questions", type=int, default=60, help="with known answers, drawn from at random")
    parser.add_argument("--url", default="", help="a server that runs already, with the same model")
    parser.add_argument("--serve", nargs="*", default=[], help="further arguments of `outpace serve`")
    parser.add_argument("--growth", type=float, default=0.05, help="share by which memory may grow")
    parser.add_argument("--resume", action="store_true", help="go on where the file of --json stopped")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts here, now and then")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
