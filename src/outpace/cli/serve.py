"""`outpace serve`: models behind a port, for OpenAI's clients and Anthropic's, and a page to watch them."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.options import (
    LIMITS,
    RUN,
    CacheDtype,
    Cards,
    DeviceName,
    DtypeName,
    MethodOptions,
    NoCompile,
    Threads,
    declares,
)
from outpace.cli.values import Device, Dtype, model_card, options
from outpace.errors import ConfigError
from outpace.failures import interruptible
from outpace.server.settings import ServerSettings

if TYPE_CHECKING:
    from outpace.engine.face import Face

__all__ = ["serve"]


@declares((ServerSettings, LIMITS, {}))
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="[NAME=]MODEL", help="What to serve, and under which name (repeatable)."),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen.", show_default=True)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any that is free.", show_default=True)] = 8000,
    api_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Only who sends one of its keys (one a line) may ask.")
    ] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Let everybody ask, on an address that others can reach.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Pages from there may ask (repeatable).")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One more name of this server (repeatable).")
    ] = None,
    method: Annotated[
        str, typer.Option(help="How to decode where a request does not say.", show_default=True)
    ] = "auto",
    option: MethodOptions = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE.py:FUNCTION", help="A reward that searches may ask for (repeatable)."),
    ] = None,
    law: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LAW:KEY=VALUE,...", help="A law that requests may ask for (repeatable)."),
    ] = None,
    dtype: DtypeName = Dtype.AUTO,
    device: DeviceName = Device.AUTO,
    card: Cards = None,
    context: Annotated[int | None, typer.Option(min=1, help="The longest text.", rich_help_panel=RUN)] = None,
    no_compile: NoCompile = False,
    cache_dtype: CacheDtype = "auto",
    threads: Threads = None,
    process: Annotated[
        bool,
        typer.Option(
            "--process/--in-process",
            help="Each model in a process of its own, which is started again if it dies.",
            rich_help_panel=RUN,
        ),
    ] = True,
    max_rows: Annotated[int, typer.Option(min=1, help="Samples written side by side.", rich_help_panel=RUN)] = 32,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Requests that wait beside them; others get 429.", rich_help_panel=RUN)
    ] = 256,
    step_tokens: Annotated[
        int,
        typer.Option(min=0, help="Most prompt tokens read in a step, beside writing; 0 = auto.", rich_help_panel=RUN),
    ] = 0,
    cache_tokens: Annotated[
        int,
        typer.Option(min=0, help="Tokens whose entries the cache holds; 0 = as memory allows.", rich_help_panel=RUN),
    ] = 0,
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve by replicas on Ray, on one machine or many.", rich_help_panel=RUN)
    ] = False,
    replicas: Annotated[
        str,
        typer.Option(metavar="N|LEAST:MOST", help="With --ray: engines per model, by their load.", rich_help_panel=RUN),
    ] = "1",
    log: Annotated[bool, typer.Option("--log", help="Log a line per request on standard error.")] = False,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log what requests hold, too.")] = False,
    **bounds: Any,
) -> None:
    """Serve models over HTTP until Ctrl-C or SIGTERM, which lets running requests end first.

    The interface is OpenAI's (/v1/chat/completions, /v1/completions, /v1/models and others); the page is at /.
    """
    served = _names(model or ["stories"])
    from outpace.server.settings import read_keys

    keys = () if api_key_file is None else read_keys(api_key_file)
    hosts = _hosts(host, bool(keys), no_key, allow_host or [])
    settings = ServerSettings(
        method=method,
        options=options(option or []),
        rewards=_rewards(reward or []),
        laws=_laws(law or []),
        keys=keys,
        hosts=hosts,
        origins=tuple(allow_origin or ()),
        logs_requests=log_requests,
        **bounds,
    )
    from outpace.methods.registry import load_method

    load_method(method).from_settings(settings.options)  # a mistake there is told before anything is loaded
    from outpace.engine.limits import Limits
    from outpace.models.opening import locate
    from outpace.server.listening import bind, run

    loading = {
        "dtype": dtype.value,
        "device": device.value,
        "card": model_card(card or []),
        "context": context,
        "is_compiled": not no_compile,
        "cache_dtype": cache_dtype,
        "threads": threads,
    }
    if ray:
        from outpace.server.ray_app import Fleet, read_replicas, serve_on_ray

        fleet = Fleet(
            models=served, load=loading, replicas=read_replicas(replicas), rows=max_rows, host=host, port=port
        )
        serve_on_ray(fleet, settings)
        return
    for path in served.values():  # models that are not there, and a port that is taken, before anything is loaded
        locate(path)
    with bind(host, port) as bound:
        limits = Limits(max_rows=max_rows, max_queue=max_queue, step_tokens=step_tokens, cache_tokens=cache_tokens)
        engines = _engines(served, process, {**loading, "limits": limits})
        with interruptible(signal.SIGINT, signal.SIGTERM):  # uvicorn hands them on when it has ended what ran
            run(engines, settings, bound, is_logged=log or log_requests)


def _rewards(given: list[str]) -> dict[str, str]:
    """Return the rewards by name, each of which can be read."""
    if not given:
        return {}
    from outpace.search.rewards import read_reward

    found = options(given)
    for name, value in found.items():
        read_reward(f"reward {name}", value)
    return found


def _laws(given: list[str]) -> dict[str, str]:
    """Return the laws by name, each of which can be read."""
    if not given:
        return {}
    from outpace.laws.registry import read_law

    found = options(given)
    for spelled in found.values():
        read_law(spelled)
    return found


def _names(given: list[str]) -> dict[str, str]:
    """Return what to load by the name that it is served under."""
    found: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        name, path = (name, path) if equals else (item.rstrip("/").rpartition("/")[2] or item, item)
        if not name or not path:
            raise ConfigError(f"--model {item!r} has no name or no model.", "Write it as in --model chat=./my-model.")
        if name in found:
            raise ConfigError(f"Two models are called {name!r}.", "Name them, as in --model one=stories.")
        found[name] = path
    return found


def _hosts(host: str, has_keys: bool, is_open: bool, more: list[str]) -> tuple[str, ...]:
    """Return the names that requests may call the server by; empty = any.

    Raises:
        ConfigError: others could reach it, and everybody might ask.
    """
    is_local = host in ("localhost", "::1") or host.startswith("127.")
    if not is_local and not has_keys:
        if not is_open:
            raise ConfigError(
                f"Other machines may reach {host}, and there are no keys.",
                "Give --api-key-file FILE, or --no-key if everybody may ask.",
            )
        typer.echo(f"warning: everybody who reaches {host} may ask: there are no keys.", err=True)
    return ("localhost", "127.0.0.1", "[::1]", host.lower(), *map(str.lower, more)) if is_local or more else ()


def _engines(served: dict[str, str], is_separate: bool, options: dict[str, Any]) -> dict[str, Face]:
    from outpace.engine.core import Engine
    from outpace.engine.process import EngineProcess

    kind = EngineProcess if is_separate else Engine
    return {name: kind(path, **options) for name, path in served.items()}
