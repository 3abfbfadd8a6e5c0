"""What answers a batch, by an engine that misbehaves; routing by prefix, and sums of loads."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from outpace.api.result import Result
from outpace.engine.face import Ask, Busy, Gone, Histogram, Load, Piece, Ticket
from outpace.errors import ConfigError, OutpaceError
from outpace.server.batch_file import Answers, Line, read_lines
from outpace.server.batch_run import Answerer, Plan, Tally, answer_all
from outpace.server.ray_app import Fleet, read_replicas, start_on_ray
from outpace.server.ray_batch import connect
from outpace.server.ray_engine import add_loads
from outpace.server.routing import prefix_of, route


class Written(Ticket):
    """An ask that ended as it began."""

    def __init__(self, text: str, reason: str = "eos") -> None:
        self.prompt_tokens = [1]
        self.found = Result("m", "plain", [1], [2], text, reason, usage=None, timing={}, seed=0)  # type: ignore[arg-type]

    async def __aiter__(self) -> AsyncIterator[Piece]:
        return
        yield

    async def results(self) -> list[Result]:
        return [self.found]

    def cancel(self) -> None:
        """Nothing runs."""


class Odd:
    """An engine that does what a function says."""

    def __init__(self, act: Callable[[Ask], Ticket]) -> None:
        self.act, self.load_ = act, Load()

    async def submit(self, ask: Ask) -> Ticket:
        return self.act(ask)

    async def load(self) -> Load:
        return self.load_


def run(tmp_path: Path, act: Callable[[Ask], Ticket], num: int = 6, **more: Any) -> tuple[dict[int, Any], Tally]:
    """Answer lines whose prompts are their numbers."""
    given, out, tally = tmp_path / "in.jsonl", tmp_path / "out.jsonl", Tally(total=num)
    given.write_text("".join(json.dumps({"prompt": str(n)}) + "\n" for n in range(1, num + 1)))
    answers = Answers(out)
    try:
        work = answer_all(read_lines(given), Answerer(Odd(act), "m", {}), answers, tally, most=2, **more)  # type: ignore[arg-type]
        asyncio.run(work)
    finally:
        answers.close()
        found = [json.loads(line) for line in out.read_text().splitlines()]
    return {one["line"]: one for one in found}, tally


def test_whatever_a_line_brings_about_is_that_lines(tmp_path: Path) -> None:
    def act(ask: Ask) -> Ticket:
        if ask.prompt == "2":
            raise RecursionError("so deep\nand deeper")
        ticket = Written("ok", "error" if ask.prompt == "4" else "eos")
        ticket.found.log_probs, ticket.found.top_log_probs = [-math.inf], [[(2, -1.5), (3, -math.inf)]]
        return ticket

    found, tally = run(tmp_path, act)
    assert sorted(found) == [1, 2, 3, 4, 5, 6] and (tally.written, tally.errors) == (6, 2)
    assert found[2]["error"]["message"].startswith("RecursionError: so deep")
    assert found[1]["outputs"][0]["log_probs"] == [None] and found[1]["outputs"][0]["top_log_probs"] == [
        [[2, -1.5], [3, None]]
    ]
    assert found[4]["error"]["type"] == "NumericalError" and found[4]["outputs"][0]["text"] == "ok"


def test_a_busy_engine_is_asked_again(tmp_path: Path) -> None:
    seen: list[Any] = []

    def act(ask: Ask) -> Ticket:
        seen.append(ask.prompt)
        if seen.count(ask.prompt) < 4:
            raise Busy("Full.", retry_s=0.0)
        return Written("ok")

    found, tally = run(tmp_path, act, 2)
    assert len(seen) == 8 and sorted(found) == [1, 2] and not tally.errors


def test_a_dead_engine_ends_the_run_and_what_is_written_stays(tmp_path: Path) -> None:
    def act(ask: Ask) -> Ticket:
        if ask.prompt == "4":
            raise Gone("The engine is dead.")
        return Written("ok")

    with pytest.raises(Gone):
        run(tmp_path, act)
    assert 2 <= len((tmp_path / "out.jsonl").read_text().splitlines()) < 6
    found, tally = run(tmp_path, lambda _: Written("ok"))
    assert sorted(found) == [1, 2, 3, 4, 5, 6] and tally.written < 6


def test_a_wish_to_end_leaves_the_rest_open(tmp_path: Path) -> None:
    wishes: list[int] = []
    found, tally = run(
        tmp_path,
        lambda ask: Written("x", "cancelled" if ask.prompt == "1" else "eos"),
        is_wished=lambda: len(wishes) > 1,
        tell=lambda now: wishes.append(now.written),
    )
    assert tally.is_cut and 1 not in found and 2 <= len(found) < 6
    again, _ = run(tmp_path, lambda _: Written("x"))
    assert sorted(again) == [1, 2, 3, 4, 5, 6]


def test_lines_of_openai_form_go_through_the_application() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["path"], json.loads((await receive())["body"])))
        status = 429 if len(seen) == 1 else 200
        body = json.dumps({"id": "chatcmpl-123", "usage": {"completion_tokens": 3}}).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"retry-after", b"0")]})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:]})

    body = {"model": "m", "messages": []}
    line = Line(3, "abc", {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": body})
    answerer = Answerer(Odd(lambda _: Written("")), "m", {}, lambda: app)  # type: ignore[arg-type]
    found = asyncio.run(answerer(line))
    assert found is not None and seen == [("/v1/chat/completions", body)] * 2
    assert found["response"] == {
        "status_code": 200,
        "request_id": "abc",
        "body": {"id": "chatcmpl-123", "usage": {"completion_tokens": 3}},
    }
    assert (found["custom_id"], found["id"], found["line"], found["error"]) == ("r", "batch_req_abc", 3, None)
    tally = Tally()
    tally.add(found)
    assert tally.tokens == 3
    for change in ({"method": "GET"}, {"body": {"stream": True}}, {"url": 3}):
        told = asyncio.run(answerer(Line(4, "d", {**line.fields, **change})))
        assert told is not None and told["error"]["type"] == "ConfigError" and told["custom_id"] == "r"


def test_a_line_of_openai_form_is_what_the_server_answers(tiny: Path) -> None:
    import outpace

    plan = Plan(str(tiny), {"is_compiled": False}, {"method": "autoregressive"})
    body = {"model": str(tiny), "prompt": "the quick", "max_tokens": 6, "seed": 4, "temperature": 1.0}
    answerer = plan.answerer()

    async def main() -> list[dict[str, Any] | None]:
        lines = [
            Line(n, "d", {"url": "/v1/completions", "body": body | {"model": m}}) for n, m in ((1, str(tiny)), (2, "x"))
        ]
        found = [await answerer(line) for line in lines]
        await answerer.engine.close(0.0)
        return found

    good, bad = asyncio.run(main())
    alone = outpace.load(tiny).generate("the quick", max_tokens=6, seed=4, temperature=1.0)
    assert good is not None and good["response"]["body"]["choices"][0]["text"] == alone.text
    assert bad is not None and bad["response"]["status_code"] == 404 and "no model 'x'" in bad["error"]["message"]


def test_one_beginning_goes_to_one_replica_until_it_has_too_much_to_do() -> None:
    loads = dict.fromkeys("abcd", 0.0)
    orders = {n: route(prefix_of(f"prompt {n}"), loads, 4) for n in range(200)}
    homes = [order[0] for order in orders.values()]
    assert all(30 <= homes.count(name) <= 70 for name in loads), "beginnings are spread"
    for n, order in orders.items():
        prefix = prefix_of(f"prompt {n}")
        assert route(prefix, loads | {order[0]: 4.0}, 4) == order
        assert route(prefix, loads | {order[0]: 5.0}, 4) == [*order[1:], order[0]]
        left = {name: 0.0 for name in loads if name != "d"}  # only d's own move where d goes
        assert route(prefix, left, 4) == [name for name in order if name != "d"]


def test_a_beginning_is_of_text_tokens_or_messages() -> None:
    assert prefix_of("x" * 300 + "a") == prefix_of("x" * 300 + "b") != prefix_of("y" * 300)
    assert prefix_of([1] * 64 + [2]) == prefix_of([1] * 64 + [3]) != prefix_of([2] * 64)
    told = [{"role": "system", "content": "s" * 300}, {"role": "user", "content": "a"}]
    assert prefix_of(told) == prefix_of([told[0], {"role": "user", "content": "b"}]) and prefix_of([])


def test_loads_of_replicas_add_up() -> None:
    seen = Histogram((1.0,), [2, 1], 3.5)
    one = Load(running=2, pages=4, page_size=16, accepted_at=[3, 1], finished={"eos": 1}, seconds={"queue": seen})
    two = Load(running=1, page_size=16, accepted_at=[1], finished={"eos": 2, "stop": 1}, is_alive=False)
    total = add_loads([one, two, one])
    assert (total.running, total.pages, total.page_size, total.accepted_at) == (5, 8, 16, [7, 2])
    assert total.finished == {"eos": 4, "stop": 1} and total.is_alive and not add_loads([two]).is_alive
    assert (total.seconds["queue"].counts, total.seconds["queue"].total) == ([4, 2], 7.0) and seen.counts == [2, 1]
    assert not add_loads([]).is_alive


def test_without_ray_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray is not installed"):
        start_on_ray(Fleet(models={"stories": "stories"}))
    with pytest.raises(ConfigError, match="Ray is not installed") as caught:
        connect()
    assert "outpace[scale]" in caught.value.hint


def test_replicas_are_a_number_or_two() -> None:
    assert [read_replicas(text) for text in ("3", "1:8")] == [(3, 3), (1, 8)]
    with pytest.raises(ConfigError, match="no number of replicas"):
        read_replicas("many")
    with pytest.raises(ConfigError, match="Ray does not choose a port"):
        start_on_ray(Fleet(models={"stories": "stories"}, port=0))


@pytest.mark.parametrize("change", [{"replicas": (0, 1)}, {"replicas": (2, 1)}, {"rows": 0}, {"models": {}}])
def test_a_fleet_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(OutpaceError):
        Fleet(**({"models": {"m": "m"}} | change))
