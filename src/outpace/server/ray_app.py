"""`outpace serve --ray`: the server's application as Ray Serve's ingress, in front of as many replicas as are needed.

    client -> Ray's HTTP proxy -> ingress (our application, light) -> router by shared prefix -> replica (an engine)

The ingress keeps text, tools and streams; replicas know only asks and pieces, as an engine in this process does.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from outpace.errors import ConfigError
from outpace.failures import interruptible
from outpace.models.opening import locate
from outpace.server.ray_batch import connect

__all__ = ["Fleet", "read_replicas", "serve_on_ray", "start_on_ray"]

_APP = "outpace"
_LOOK_S = 0.2  # between two looks at whether it is to end
_TARGET = 0.7  # of a replica's rows, on average, before another replica is wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What runs on Ray.

    Attributes:
        models: what `outpace.load` takes, by the name that clients use.
        load: arguments of `outpace.load`, for all of them.
        replicas: least and most per model; between them, Ray follows the asks under way.
        ingresses: processes that speak HTTP.
        rows: asks under way per replica.
        slack: how many more asks than the least loaded replica one may have and still be preferred for its cache.
        host, port: of the HTTP proxy.

    Raises:
        ConfigError: a number is out of range.
    """

    models: Mapping[str, str]
    load: Mapping[str, Any] = field(default_factory=dict)
    replicas: tuple[int, int] = (1, 1)
    ingresses: int = 1
    rows: int = 32
    slack: float = 8.0
    host: str = "127.0.0.1"
    port: int = 8000

    def __post_init__(self) -> None:
        least, most = self.replicas
        if not 1 <= least <= most:
            raise ConfigError(f"Replicas go from {least} to {most}.", "Give at least one, and no fewer at most.")
        if self.rows < 1 or self.ingresses < 1:
            raise ConfigError("A replica has a row, and there is an ingress.", "Give 1 or more.")
        if not self.models:
            raise ConfigError("There is no model to serve.", "Name one, such as --model stories.")


def read_replicas(text: str) -> tuple[int, int]:
    """Read N or LEAST:MOST.

    Raises:
        ConfigError: it is neither.
    """
    least, _, most = text.partition(":")
    try:
        return int(least), int(most or least)
    except ValueError:
        raise ConfigError(f"{text!r} is no number of replicas.", "Write 4, or 1:8.") from None


def start_on_ray(fleet: Fleet, settings: Any = None) -> None:
    """Start the fleet and return once it answers.

    Args:
        fleet: what runs.
        settings: the `ServerSettings` of the application; None = the defaults.

    Raises:
        ConfigError: Ray, or Ray Serve, is not installed, or there is no cluster.
    """
    if not fleet.port:
        raise ConfigError("Ray does not choose a port.", "Give --port, above 0.")
    for model in fleet.models.values():  # before anything is started
        locate(model)
    connect()
    try:
        serve = importlib.import_module("ray.serve")
    except ImportError:
        raise ConfigError("Ray Serve is not installed.", "pip install 'outpace[scale]'.") from None
    serve.start(http_options={"host": fleet.host, "port": fleet.port})
    replicas = [
        _replicas(serve, fleet, index).bind(name, model, dict(fleet.load), fleet.rows)
        for index, (name, model) in enumerate(fleet.models.items())
    ]
    ingress = serve.deployment(serve.ingress(_builder(dict(fleet.models), settings))()).options(
        name="ingress", num_replicas=fleet.ingresses, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0.1}
    )
    serve.run(ingress.bind(*replicas), name=_APP, route_prefix="/", blocking=False)


def serve_on_ray(fleet: Fleet, settings: Any = None) -> None:
    """Serve until SIGINT or SIGTERM, which lets running requests end first.

    Raises:
        ConfigError: as `start_on_ray`.
    """
    start_on_ray(fleet, settings)
    with interruptible(signal.SIGINT, signal.SIGTERM) as is_wished:  # not before: Ray listens for SIGTERM in its way
        print(f"Serving {', '.join(fleet.models)} at http://{fleet.host}:{fleet.port}", file=sys.stderr, flush=True)
        while not is_wished():
            time.sleep(_LOOK_S)
        importlib.import_module("ray.serve").shutdown()


def _replicas(serve: Any, fleet: Fleet, index: int) -> Any:
    """Return the deployment of a model's engines."""
    from outpace.server.ray_engine import Replica

    config = importlib.import_module("ray.serve.config")
    least, most = fleet.replicas
    number: dict[str, Any] = {"num_replicas": least}
    if least < most:
        target = max(1.0, _TARGET * fleet.rows)
        number = {
            "autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}
        }
    needs = {"num_cpus": fleet.load.get("threads") or 1, "num_gpus": int(fleet.load.get("device") == "cuda")}
    router = config.RequestRouterConfig(
        request_router_class="outpace.server.ray_router.PrefixRouter", request_router_kwargs={"slack": fleet.slack}
    )
    return serve.deployment(Replica).options(
        name=_deployment(index),
        max_ongoing_requests=fleet.rows,
        health_check_period_s=5,
        ray_actor_options=needs,
        request_router_config=router,
        **number,
    )


def _deployment(index: int) -> str:
    return f"engine-{index}"


def _builder(models: Mapping[str, str], settings: Any) -> Any:
    """Return a function that builds the application within an ingress."""

    def build() -> Any:
        from outpace.server.app import create_app
        from outpace.server.ray_engine import RayEngine

        serve = importlib.import_module("ray.serve")
        engines = {
            name: RayEngine(model, serve.get_deployment_handle(_deployment(index), app_name=_APP))
            for index, (name, model) in enumerate(models.items())
        }
        app = create_app(engines, settings)
        _start_first(app, list(engines.values()))
        return app

    return build


def _start_first(app: Any, engines: Sequence[Any]) -> None:
    """Let an application wait for its engines before it begins."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(given: Any) -> AsyncIterator[Any]:
        await asyncio.gather(*(engine.start() for engine in engines))
        async with inner(given) as state:
            yield state

    app.router.lifespan_context = lifespan
