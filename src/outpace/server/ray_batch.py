"""Workers on Ray that answer the lines of a batch; whoever writes the answers is the one process that started them.

A line that was under way when its worker died is asked again, so none is lost; only an answer that has arrived is
written, so none is written twice. A line that brought two workers down is tried once more with nothing beside it: if
that one dies too, the line was the cause, and that is its answer.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from outpace.engine.face import Gone
from outpace.errors import ConfigError, OutpaceError
from outpace.server.batch_file import Line
from outpace.server.batch_run import Plan, failed

__all__ = ["connect", "on_ray"]

_DEATHS = 3  # of workers, over one line
_STARTS = 3  # of a worker that does not come up


def connect() -> tuple[Any, bool]:
    """Return Ray, connected to the cluster of RAY_ADDRESS or to one of this process alone, and whether it was before.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ConfigError("Ray is not installed.", "pip install 'outpace[scale]', or leave --ray out.") from None
    if ray.is_initialized():
        return ray, True
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of it unless the user says so
    address = os.environ.get("RAY_ADDRESS") or "local"
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"There is no Ray at {address}: {told}", "Start one with `ray start --head`.") from None
    return ray, False


class _Worker:
    """Lives in a process of its own, on any machine of the cluster."""

    def __init__(self, plan: Plan) -> None:
        self._answer = plan.answerer()

    async def answer(self, line: Line) -> dict[str, Any] | None:
        """Answer a line; a worker whose engine died ends, so that another takes its place."""
        try:
            return await self._answer(line)
        except Gone:
            os._exit(1)

    async def ready(self) -> int:
        """Return the number of the process, once the model is loaded."""
        return os.getpid()


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker's place: the worker changes when it dies."""

    worker: Any
    running: int = 0
    is_held: bool = False  # by a line that is tried alone


class _Pool:
    """Gives lines to the workers that have least to do."""

    def __init__(self, ray: Any, plan: Plan) -> None:
        self._ray, self._plan = ray, plan
        needs = {"num_cpus": plan.load.get("threads") or 1, "num_gpus": int(plan.load.get("device") == "cuda")}
        self._class = ray.remote(**needs, max_concurrency=plan.rows + 1)(_Worker)
        self.seats = [_Seat(self._class.remote(plan)) for _ in range(plan.workers)]
        self._changed = asyncio.Condition()
        self._renewing = asyncio.Lock()

    async def __call__(self, line: Line) -> dict[str, Any] | None:
        """Return the answer to a line.

        Raises:
            OutpaceError: workers do not come up.
        """
        for death in range(_DEATHS):
            seat = await self._take(is_alone=death == _DEATHS - 1)
            worker = seat.worker
            try:
                record: dict[str, Any] | None = await worker.answer.remote(line)
                return record
            except self._ray.exceptions.RayTaskError as error:
                raise OutpaceError(f"A worker failed: {str(error).splitlines()[-1]}") from None
            except self._ray.exceptions.RayError:
                await self.renew(seat, worker)
            finally:
                await self._leave(seat, is_alone=death == _DEATHS - 1)
        told = f"{_DEATHS} workers died while they wrote this line, the last with nothing else to write."
        return failed(line, told, "It may need more memory than there is.", "WorkerDied")

    async def renew(self, seat: _Seat, dead: Any) -> None:
        """Put another worker in the place of one that died, unless that was done.

        Raises:
            OutpaceError: none comes up.
        """
        async with self._renewing:
            if seat.worker is not dead:
                return
            for _ in range(_STARTS):
                seat.worker = self._class.remote(self._plan)
                try:
                    await seat.worker.ready.remote()
                    return
                except self._ray.exceptions.RayError as error:
                    told = next((text for text in reversed(str(error).splitlines()) if text.strip()), "")
            raise OutpaceError(f"No worker comes up: {told.strip()}", "See Ray's logs.")

    async def _take(self, is_alone: bool) -> _Seat:
        async with self._changed:
            await self._changed.wait_for(lambda: any(not seat.is_held for seat in self.seats))
            seat = min((seat for seat in self.seats if not seat.is_held), key=lambda seat: seat.running)
            if is_alone:
                seat.is_held = True
                await self._changed.wait_for(lambda: not seat.running)
            seat.running += 1
            return seat

    async def _leave(self, seat: _Seat, is_alone: bool) -> None:
        async with self._changed:
            seat.running -= 1
            seat.is_held = seat.is_held and not is_alone
            self._changed.notify_all()


@asynccontextmanager
async def on_ray(plan: Plan) -> AsyncIterator[_Pool]:
    """Yield what answers lines by workers on Ray; they end with the block.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster.
        OutpaceError: no worker comes up.
    """
    ray, was_connected = connect()
    pool = _Pool(ray, plan)
    try:
        for seat in pool.seats:
            try:
                await seat.worker.ready.remote()
            except ray.exceptions.RayError:
                await pool.renew(seat, seat.worker)
        yield pool
    finally:
        for seat in pool.seats:
            ray.kill(seat.worker)
        if not was_connected:
            ray.shutdown()
