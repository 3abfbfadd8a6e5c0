"""The face of replicas and the replica behind it, with a handle that calls it in this process: Ray is not needed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import outpace
from outpace.engine.face import Ask, Busy, Gone
from outpace.errors import ConfigError
from outpace.server.ray_engine import RayEngine, Replica

LAW = {"max_tokens": 12, "ignore_eos": True, "temperature": 1.0, "method": "autoregressive"}
GAUGES: dict[str, float] = {}


class Gauge:
    """Keeps the last value by name."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name = name

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert tags == {"model": "tiny"}

    def set(self, value: float) -> None:
        GAUGES[self.name] = value


class FullError(Exception):
    """What Ray Serve says of a full queue."""


class Stream:
    """An asynchronous generator that can be cancelled, as Ray's."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.is_cancelled = inner, False

    async def __anext__(self) -> Any:
        return await anext(self._inner)

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """Calls one replica, or fails as it is told to."""

    def __init__(self, replica: Replica, fault: Callable[[], Exception] | None = None) -> None:
        self._replica, self.fault = replica, fault
        self.write = SimpleNamespace(remote=lambda *given: Stream(self._write(*given)))
        self.traits = SimpleNamespace(remote=lambda: self._now(replica.traits()))
        self.embed = SimpleNamespace(remote=replica.embed)

    def options(self, stream: bool) -> Handle:
        assert stream
        return self

    async def _now(self, value: Any) -> Any:
        return value

    async def _write(self, *given: Any) -> Any:
        async for item in self._replica.write(*given):
            if self.fault is not None:
                raise self.fault()
            yield item

    def broadcast(self, method: str, *given: Any) -> Any:
        async def results(**_: Any) -> list[Any]:
            found = getattr(self._replica, method)(*given)
            return [await found if isinstance(found, Awaitable) else found, RuntimeError("another replica is gone")]

        return SimpleNamespace(results_async=results)


@pytest.fixture(scope="module")
def patched() -> Iterator[None]:
    """Stand in for the two modules of Ray that these classes import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray.util.metrics", SimpleNamespace(Gauge=Gauge))
        patch.setitem(sys.modules, "ray.serve.exceptions", SimpleNamespace(BackPressureError=FullError))
        yield


@pytest.fixture(scope="module")
def replica(patched: None, tiny: Path) -> Replica:
    return Replica("tiny", str(tiny), {"is_compiled": False}, 4)


def test_asks_pieces_results_and_cancelling_cross(replica: Replica, tiny: Path) -> None:
    async def main() -> None:
        face = RayEngine(str(tiny), Handle(replica))
        await face.start()
        assert face.traits.context == 512 and face.tokenizer is not None
        asks = [Ask(prompt="the quick", arguments=LAW | {"seed": seed}) for seed in range(6)]
        tickets = await asyncio.gather(*(face.submit(ask) for ask in asks))
        ids = [[token.id async for piece in ticket for token in piece.tokens] for ticket in tickets]
        results = [(await ticket.results())[0].tokens for ticket in tickets]
        lm = outpace.load(tiny)
        assert ids == results == [lm.generate("the quick", **LAW, seed=seed).tokens for seed in range(6)]
        ticket = await face.submit(Ask(prompt="the", arguments=LAW | {"max_tokens": 500}))
        async for _ in ticket:
            ticket.cancel()
        (result,) = await ticket.results()
        assert result.finish_reason == "cancelled" and 0 < len(result.tokens) < 500
        assert (await face.load()).written_tokens == 6 * 12 + len(result.tokens)
        assert await face.embed([[5, 6]]) == await replica.embed([[5, 6]], "mean")
        for call in (face.submit(Ask(prompt="x", arguments={"top_p": 3})), face.embed([[5]], "odd")):
            with pytest.raises(ConfigError) as caught:
                await call
            assert caught.value.hint

    asyncio.run(main())


def test_faults_are_told_in_terms_of_an_engine(replica: Replica, tiny: Path) -> None:
    async def main() -> None:
        for fault, kind in ((FullError, Busy), (RuntimeError, Gone)):
            with pytest.raises(kind):
                await RayEngine(str(tiny), Handle(replica, fault)).submit(Ask(prompt="the", arguments=LAW))
        handle = Handle(replica)
        face = RayEngine(str(tiny), handle)
        ticket = await face.submit(Ask(prompt="the", arguments=LAW | {"max_tokens": 500}))
        handle.fault = RuntimeError
        with pytest.raises(Gone, match="gone"):
            async for _ in ticket:
                pass
        with pytest.raises(Gone):
            await ticket.results()

    asyncio.run(main())


def test_a_replica_tells_whether_its_engine_is_alive(replica: Replica) -> None:
    async def main() -> None:
        await replica.check_health()
        assert GAUGES["outpace_written_tokens"] > 0 and "outpace_running" in GAUGES
        await replica._engine.close(0.0)
        with pytest.raises(Gone):
            await replica.check_health()

    asyncio.run(main())
