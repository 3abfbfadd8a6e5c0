"""/metrics, in Prometheus' text format: what every engine holds and has done, under our names and under vLLM's.

vLLM's names are what dashboards, gateways and measuring tools look for. Both come from one `Face.load()` per scrape;
nothing is counted here, and there is no registry of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate

from fastapi import Response
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from outpace.engine.face import Face, Gone, Histogram, Load
from outpace.server.route import new_router
from outpace.server.serving import Served

__all__ = ["metrics_text", "router"]

router = new_router()
_LABELS = ("model_name", "engine")
_PATIENCE_S = 10.0  # an engine that says nothing for so long counts as dead

# Our name, vLLM's name, what it is, and how it is read; "" = the other side has none.
_GAUGES: tuple[tuple[str, str, str, Callable[[Load], float]], ...] = (
    ("samples_running", "num_requests_running", "Samples being written.", lambda it: it.running),
    ("requests_waiting", "num_requests_waiting", "Requests in the queue.", lambda it: it.waiting),
    ("cache_usage_ratio", "kv_cache_usage_perc", "Share of the cache's pages in use.", lambda it: _usage(it)),
    ("cache_pages", "", "Pages of the cache.", lambda it: it.pages),
    ("cache_pages_used", "", "Pages of the cache in use.", lambda it: it.pages_used),
)
_COUNTERS: tuple[tuple[str, str, str, Callable[[Load], float]], ...] = (
    ("preemptions", "num_preemptions", "Samples that gave up their pages for a while.", lambda it: it.preempted),
    ("prompt_tokens", "prompt_tokens", "Tokens of prompts.", lambda it: it.prompt_tokens),
    ("cached_prompt_tokens", "prefix_cache_hits", "Tokens of prompts found in the cache.", lambda it: it.cached_tokens),
    ("", "prefix_cache_queries", "Tokens of prompts looked up in the cache.", lambda it: it.prompt_tokens),
    ("written_tokens", "generation_tokens", "Tokens written.", lambda it: it.written_tokens),
    ("steps", "", "Forwards of the model.", lambda it: it.steps),
    ("drafts", "spec_decode_num_drafts", "Steps of a sample that drafted.", lambda it: it.drafts),
    ("drafted_tokens", "spec_decode_num_draft_tokens", "Tokens drafted.", lambda it: it.drafted),
    ("accepted_tokens", "spec_decode_num_accepted_tokens", "Drafted tokens kept.", lambda it: it.accepted),
    ("engine_restarts", "", "Times that the engine was started again.", lambda it: it.restarts),
)
_ACCEPTED_AT = ("accepted_tokens_per_pos", "spec_decode_num_accepted_tokens_per_pos")
_FINISHED = ("samples_finished", "request_success")
_REASONS = {"eos": "stop", "cancelled": "abort"}  # ours, as vLLM calls them
_SECONDS = {  # by key of `Load.seconds`
    "first_token": ("first_token_seconds", "time_to_first_token_seconds", "From a request to its first token."),
    "between_tokens": ("between_tokens_seconds", "inter_token_latency_seconds", "Between two tokens of a sample."),
    "per_token": ("per_token_seconds", "request_time_per_output_token_seconds", "Per token behind a sample's first."),
    "whole": ("request_seconds", "e2e_request_latency_seconds", "From a request to its end."),
    "queue": ("queue_seconds", "request_queue_time_seconds", "From a request to the start of its first sample."),
    "prefill": ("prefill_seconds", "request_prefill_time_seconds", "From a sample's start to its first token."),
    "decode": ("decode_seconds", "request_decode_time_seconds", "From a sample's first token to its end."),
}


@router.get("/metrics")
async def metrics(served: Served) -> Response:
    """Say what every engine holds and has done."""
    return Response(await metrics_text(served.engines), media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def metrics_text(engines: Mapping[str, Face]) -> bytes:
    """Return the metrics of engines in Prometheus' text format.

    Args:
        engines: by the name that requests use, which is the label model_name.
    """
    loads = await asyncio.gather(*map(_load, engines.values()))
    created = {name: float(engine.traits.created) for name, engine in engines.items()}
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Found(dict(zip(engines, loads, strict=True)), created))
    return generate_latest(registry)


async def _load(engine: Face) -> Load:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await engine.load()
    except (Gone, TimeoutError):
        return Load(is_alive=False)


class _Found(Collector):
    """One scrape.

    Args:
        loads: by model.
        created: seconds since 1970 when its counting began, by model.
    """

    def __init__(self, loads: Mapping[str, Load], created: Mapping[str, float]) -> None:
        self._loads, self._created = loads, created

    def collect(self) -> Iterator[Metric]:
        """Yield every family once, with all models' values."""
        alive = GaugeMetricFamily("outpace:engine_up", "Whether the engine answers.", labels=_LABELS)
        for labels, load in self._each():
            alive.add_metric(labels, float(load.is_alive))
        yield alive
        for *names, text, read in _GAUGES:
            for name in _names(names):
                gauge = GaugeMetricFamily(name, text, labels=_LABELS)
                for labels, load in self._each():
                    gauge.add_metric(labels, read(load))
                yield gauge
        for *names, text, read in _COUNTERS:
            yield from self._counters(names, text, (), partial(_single, read))
        text = "Drafted tokens kept, by how deep they stood."
        yield from self._counters(_ACCEPTED_AT, text, ("position",), _by_position)
        yield from self._counters(_FINISHED[:1], "Samples by how they ended.", ("finish",), _by_finish)
        yield from self._counters(("", _FINISHED[1]), "Samples by how they ended.", ("finished_reason",), _by_reason)
        yield from self._histograms()
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "The cache's pages.", labels=(*_LABELS, "block_size", "num_gpu_blocks")
        )
        for labels, load in self._each():
            info.add_metric((*labels, str(load.page_size), str(load.pages)), 1)
        yield info

    def _each(self) -> Iterator[tuple[tuple[str, str], Load]]:
        for name, load in self._loads.items():
            yield (name, "0"), load

    def _counters(
        self, names: Iterable[str], text: str, more: tuple[str, ...], read: Callable[[Load], _Values]
    ) -> Iterator[Metric]:
        for name in _names(names):
            counter = CounterMetricFamily(name, text, labels=(*_LABELS, *more))
            for labels, load in self._each():
                for others, value in read(load).items():
                    counter.add_metric((*labels, *others), value, created=self._created[labels[0]])
            yield counter

    def _histograms(self) -> Iterator[Metric]:
        for key, (*names, text) in _SECONDS.items():
            for name in _names(names):
                family = HistogramMetricFamily(name, text, labels=_LABELS)
                for labels, load in self._each():
                    if key in load.seconds:
                        family.add_metric(labels, _buckets(load.seconds[key]), load.seconds[key].total)
                if family.samples:
                    yield family


_Values = Mapping[tuple[str, ...], float]


def _names(both: Iterable[str]) -> list[str]:
    """Return our name and vLLM's as they stand on the wire."""
    return [f"{prefix}:{name}" for prefix, name in zip(("outpace", "vllm"), both, strict=False) if name]


def _usage(load: Load) -> float:
    return load.pages_used / load.pages if load.pages else 0.0


def _single(read: Callable[[Load], float], load: Load) -> _Values:
    return {(): read(load)}


def _by_position(load: Load) -> _Values:
    return {(str(position),): kept for position, kept in enumerate(load.accepted_at)}


def _by_finish(load: Load) -> _Values:
    return {(finish,): count for finish, count in load.finished.items()}


def _by_reason(load: Load) -> _Values:
    found = dict.fromkeys(("stop", "length", "abort", "error"), 0)
    for finish, count in load.finished.items():
        reason = _REASONS.get(finish, finish)
        found[reason] = found.get(reason, 0) + count
    return {(reason,): count for reason, count in found.items()}


def _buckets(seen: Histogram) -> list[tuple[str, float]]:
    """Return the counts up to each bound, as Prometheus has them."""
    bounds = [*map(floatToGoString, seen.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(seen.counts)), strict=True))
