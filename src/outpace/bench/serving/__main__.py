"""What a server gives its clients: throughput and waiting along the number of clients, drafting on and off, in pairs.

    python -m outpace.bench.serving --model stories --clients 1,4 --rounds 2
    python -m outpace.bench.serving --model smollm2 --peers llama.cpp,transformers --json out.json --plot out.svg

Requests are a mix of code, summaries and open questions; half are sampled, each with its own seed, law and length. In
every round each side answers the same requests, one side after the other, in turning order; sides are compared round
by round. The server is started here unless --url names one. docs/measuring.md tells what each figure means.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, numbers, run_command, words
from outpace.bench.machine import describe, lock
from outpace.bench.report import Report, Skipped, new_report
from outpace.bench.serving.compare import Side, measure_sides, summarise_sides
from outpace.bench.serving.probes import measure_arrivals, measure_overhead, measure_pages, measure_prefix
from outpace.bench.serving.servers import PEERS, peer_versions, serve_ours, serve_peer, served_name, tidy_end
from outpace.bench.serving.tables import make_tables
from outpace.errors import OutpaceError
from outpace.models.loading import count_parameters

__all__ = ["main"]

PARTS = ("load", "arrivals", "prefix", "overhead", "memory")
_ROWS = 32  # that share a prefix
_PEER_CLIENTS = (1, 4, 16)


def _work(given: argparse.Namespace) -> None:
    with ExitStack() as stack:
        stack.enter_context(lock(600.0))
        stack.enter_context(tidy_end())
        facts = describe()
        lm = load(given.model, threads=given.threads or None)
        url = given.url
        if not url:
            url = stack.enter_context(serve_ours(given.model, threads=given.threads, arguments=given.serve)).url
        found: dict[str, Any] = {}
        skipped: list[Skipped] = []
        name = served_name(url, given.model)
        if "load" in given.parts:
            sides = [Side(method, url, name, method) for method in given.methods]
            found["load"] = _load(sides, given, lm, given.clients)
        for part in ("arrivals", "prefix", "overhead", "memory"):
            if part in given.parts:
                try:
                    found[part] = _probe(part, url, name, given, lm)
                except OutpaceError as error:
                    skipped.append(Skipped(part, f"{error} {error.hint}".strip()))
        if given.peers:
            found["beside"] = _peers(
                Side(given.methods[-1], url, name, given.methods[-1], streams=False), given, lm, skipped
            )
    report = _report(given, lm, facts, found, skipped)
    for table in report.tables():
        print(table.markdown(), end="\n\n")
    for item in skipped:
        print(f"Left out: {item.name}. {item.reason}")
    report.write(given.json, given.plot, given.markdown)


def _load(
    sides: Sequence[Side], given: argparse.Namespace, lm: LanguageModel, clients: Sequence[int]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in clients:
        loads = measure_sides(
            sides,
            clients=number,
            rounds=given.rounds,
            requests=given.requests * number,
            mix=given.mix,
            tokenizer=lm.tokenizer,
            max_tokens=given.max_tokens,
        )
        rows += summarise_sides(loads, number)
    return rows


def _probe(part: str, url: str, name: str, given: argparse.Namespace, lm: LanguageModel) -> Any:
    offered = lm.target.capabilities
    half = offered.max_positions // 2
    if part == "arrivals":
        room = offered.max_positions - 1
        sizes = {"clients": 8, "prompt_tokens": min(2048, room), "max_tokens": min(4 * given.max_tokens, half)}
        return [measure_arrivals(url, name, method, offered.vocab_size, **sizes) for method in given.methods]
    if part == "prefix":
        return measure_prefix(url, name, offered.vocab_size, prefix_tokens=min(1024, half), rounds=max(5, given.rounds))
    if part == "overhead":
        asked = {"rounds": given.rounds, "max_tokens": given.max_tokens}
        return measure_overhead(url, name, lm, given.mix, given.methods, **asked)
    sizes = {"prefix_tokens": min(1024, half), "max_tokens": min(2 * given.max_tokens, half // 2)}
    return measure_pages(url, name, offered.vocab_size, rows=_ROWS, **sizes)


def _peers(own: Side, given: argparse.Namespace, lm: LanguageModel, skipped: list[Skipped]) -> list[dict[str, Any]]:
    """Return our side beside each peer, one peer's server at a time. Nothing is streamed: not all tell usage then."""
    rows: list[dict[str, Any]] = []
    context = lm.target.capabilities.max_positions
    numbers = [number for number in _PEER_CLIENTS if number <= max(given.clients)]
    with tempfile.TemporaryDirectory() as folder:
        for name in given.peers:
            try:
                with serve_peer(name, given.model, Path(folder), lm.target.dtype, context, given.threads) as peer:
                    rows += _load([Side(peer.name, peer.url, peer.model, streams=False), own], given, lm, numbers)
            except OutpaceError as error:
                skipped.append(Skipped(name, f"{error} {error.hint}".strip()))
    return rows


def _report(
    given: argparse.Namespace,
    lm: LanguageModel,
    facts: Mapping[str, Any],
    found: Mapping[str, Any],
    skipped: Sequence[Skipped],
) -> Report:
    options = {name: value for name, value in vars(given).items() if name not in ("url", "serve")}
    parts = {name: value for name, value in found.items() if name != "load"}
    count = 0 if lm.directory is None else count_parameters(lm.directory)
    model = {"name": Path(given.model).name, "parameters": count, "dtype": str(lm.target.dtype).removeprefix("torch.")}
    more = {"model": model, "peers": peer_versions(given.peers), **parts}
    return new_report(
        "serving", options, facts, found.get("load", []), tables=make_tables(found), skipped=skipped, **more
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit status."""
    parser = new_parser("serving", __doc__)
    parser.add_argument("--model", default="stories", help="a shipped model, a directory, a GGUF file or a hub id")
    parser.add_argument("--clients", type=numbers, default=[1, 2, 4, 8, 16, 32], help="side by side, parted by commas")
    parser.add_argument("--methods", type=_names, default=["off", "auto"], help="the first is what others are held to")
    parser.add_argument("--mix", type=_names, default=["code", "text", "open"], help="prompt sets, in turns")
    parser.add_argument("--parts", type=words("part", PARTS), default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--peers", type=words("peer", PEERS), default=[], help=f"of {', '.join(PEERS)}")
    parser.add_argument("--url", default="", help="a server that runs already, with the same model")
    parser.add_argument("--serve", nargs="*", default=[], help="further arguments of `outpace serve`")
    parser.add_argument("--rounds", type=int, default=3, help="each with other prompts, seeds and lengths")
    parser.add_argument("--requests", type=int, default=3, help="per client and round")
    parser.add_argument("--max-tokens", type=int, default=64, help="to write per request, on average")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves here")
    return run_command(parser, _work, arguments)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(main())
