"""Ray: a batch whose workers are killed, and replicas behind the server's application. One cluster serves all tests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import outpace
from outpace.engine.face import Ask, Gone
from outpace.errors import ConfigError
from outpace.server.batch_file import Answers, read_lines
from outpace.server.batch_run import Plan, Tally, answer_all, here

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'outpace[scale]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, in this process

LAW = {"max_tokens": 16, "ignore_eos": True, "temperature": 1.0, "method": "autoregressive"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Three processors by name, whatever the machine has; workers find this module's classes by value."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=3, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Fatal(Plan):
    """A plan whose workers die over one prompt."""

    def answerer(self) -> Any:
        from outpace.server.batch_run import Plan

        inner = Plan.answerer(self)

        async def answer(line: Any) -> Any:
            if line.fields.get("prompt") == "die":
                os._exit(1)
            return await inner(line)

        return answer


async def answered(plan: Plan, given: Path, out: Path, kills: int = 0) -> Tally:
    """Answer a file on Ray; kill so many workers, one after every third answer."""
    from outpace.server.ray_batch import on_ray

    answers, tally, left = Answers(out), Tally(), kills

    async with on_ray(plan) as pool:
        pids = [await seat.worker.ready.remote() for seat in pool.seats]

        def told(now: Tally) -> None:
            nonlocal left
            if left and now.written >= 3 * (kills - left + 1):
                left -= 1
                os.kill(pids[left % len(pids)], signal.SIGKILL)

        await answer_all(read_lines(given), pool, answers, tally, most=plan.rows * plan.workers, tell=told)
        if kills:
            assert not {await seat.worker.ready.remote() for seat in pool.seats} & set(pids), "others took their places"
    answers.sort()
    answers.close()
    return tally


def test_killed_workers_lose_and_double_nothing(tiny: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"the fox {n}", "seed": n} for n in range(20)] + [{"prompt": ""}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = Plan(str(tiny), {"is_compiled": False}, LAW, rows=3, workers=2)
    tally = asyncio.run(answered(plan, tmp_path / "in.jsonl", tmp_path / "ray.jsonl", kills=2))
    assert (tally.written, tally.errors) == (21, 1)

    async def alone() -> None:
        answers = Answers(tmp_path / "here.jsonl")
        async with here(plan) as answer:
            await answer_all(read_lines(tmp_path / "in.jsonl"), answer, answers, Tally(), most=3)
        answers.sort()
        answers.close()

    asyncio.run(alone())
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_a_line_that_kills_workers_is_answered_by_its_error(tiny: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "die"}] + [{"prompt": f"the fox {n}"} for n in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = Fatal(str(tiny), {"is_compiled": False}, LAW, rows=3, workers=1)
    tally = asyncio.run(answered(plan, tmp_path / "in.jsonl", tmp_path / "out.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["line"] for one in found] == [1, 2, 3, 4, 5, 6] and tally.errors == 1
    assert found[0]["error"]["type"] == "WorkerDied" and all(one["error"] is None for one in found[1:])


@pytest.fixture(scope="module")
def port(tiny: Path, cluster: None) -> Iterator[int]:
    """Two replicas of a model, and an ingress on a free port."""
    from ray import serve

    from outpace.server.ray_app import Fleet, start_on_ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    start_on_ray(Fleet(models={"tiny": str(tiny)}, load={"is_compiled": False}, replicas=(2, 2), port=number))
    yield number
    serve.shutdown()


def engine(tiny: Path) -> Any:
    from ray import serve

    from outpace.server.ray_engine import RayEngine

    return RayEngine(str(tiny), serve.get_deployment_handle("engine-0", app_name="outpace"))


def test_the_ingress_is_the_server(port: int, tiny: Path) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        assert client.get("/health").json() == {"status": "ok"}
        body = {"model": "tiny", "prompt": "the quick", "max_tokens": 8, "seed": 3, "temperature": 0.8}
        found = client.post("/v1/completions", json=body).json()
        expected = outpace.load(tiny).generate("the quick", max_tokens=8, seed=3, temperature=0.8)
        assert found["choices"][0]["text"] == expected.text
        refused = client.post("/v1/completions", json=body | {"max_tokens": -1})
        assert refused.status_code == 400 and "max_tokens" in refused.json()["error"]["message"]


def test_the_face_is_that_of_an_engine_here(port: int, tiny: Path) -> None:
    async def main() -> None:
        face, lm = engine(tiny), outpace.load(tiny)
        await face.start()
        assert face.traits.context == 512
        ticket = await face.submit(Ask(prompt="the quick", arguments=LAW))
        pieces = [piece async for piece in ticket]
        (result,) = await ticket.results()
        alone = lm.generate("the quick", **LAW)
        assert [token.id for piece in pieces for token in piece.tokens] == result.tokens == alone.tokens
        assert ticket.prompt_tokens == alone.prompt_tokens and pieces[-1].finish == "length"
        with pytest.raises(ConfigError, match="max_tokens is -1") as caught:
            await face.submit(Ask(prompt="x", arguments={"max_tokens": -1}))
        assert "1 or more" in caught.value.hint
        ticket = await face.submit(Ask(prompt="the", arguments=LAW | {"max_tokens": 500}))
        async for _ in ticket:
            ticket.cancel()
        (result,) = await ticket.results()
        assert result.finish_reason == "cancelled" and 0 < len(result.tokens) < 500
        vectors = await face.embed([[5, 6, 7]])
        assert sum(value * value for value in vectors[0]) == pytest.approx(1.0)

    asyncio.run(main())


def test_prompts_with_one_beginning_meet_on_one_replica(port: int, tiny: Path) -> None:
    async def main() -> None:
        face = engine(tiny)
        await face.start()
        loads = [await face._ask_all("load")]
        for number in range(16):
            prompt = "the quick brown fox jumps over the lazy dog " * 6 + str(number)
            await (await face.submit(Ask(prompt=prompt, arguments={"max_tokens": 1}))).results()
        loads.append(await face._ask_all("load"))
        before, after = (sorted(load.prompt_tokens for load in found) for found in loads)
        grown = sum(after) - sum(before)
        assert grown > 0 and (await face.load()).prompt_tokens == sum(after)
        # Ray asks replicas how busy they are and takes another where an answer is late: of 16 coins 13 seldom agree.
        most = max(new - old for old, new in zip(before, after, strict=True))
        assert most > 0.8 * grown, "one of them took nearly all"

    asyncio.run(main())


def test_a_killed_replica_fails_what_it_held_and_is_replaced(port: int, tiny: Path) -> None:
    async def main() -> None:
        face = engine(tiny)
        await face.start()
        ticket = await face.submit(Ask(prompt="the", arguments=LAW | {"max_tokens": 500}))
        await anext(aiter(ticket))
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if "engine-0" in actor["name"]:
                ray.kill(ray.get_actor(**actor), no_restart=True)
        with pytest.raises(Gone, match="gone"):
            await ticket.results()
        async with asyncio.timeout(120):
            while True:
                try:
                    again = await face.submit(Ask(prompt="the quick", arguments=LAW))
                    (result,) = await again.results()
                    break
                except Gone:
                    await asyncio.sleep(0.2)
        assert result.tokens == outpace.load(tiny).generate("the quick", **LAW).tokens

    asyncio.run(main())
