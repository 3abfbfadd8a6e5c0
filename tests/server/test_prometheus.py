"""/metrics: one look at every engine, under our names and under vLLM's."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families
from scripted import Scripted

from outpace.engine.face import Gone, Histogram, Load
from outpace.server.prometheus import metrics_text


class Loaded(Scripted):
    def __init__(self, load: Load | None) -> None:
        super().__init__()
        self.found = load

    async def load(self) -> Load:
        if self.found is None:
            raise Gone("Dead.")
        return self.found


def load() -> Load:
    first = Histogram((0.1, 1.0), [2, 1, 1], 3.5)
    return Load(
        running=3,
        waiting=2,
        preempted=1,
        pages=40,
        pages_used=10,
        page_size=16,
        prompt_tokens=100,
        cached_tokens=60,
        written_tokens=50,
        steps=20,
        drafts=8,
        drafted=30,
        accepted=12,
        accepted_at=[7, 4, 1],
        finished={"eos": 4, "stop": 1, "length": 2, "cancelled": 3},
        seconds={"first_token": first, "per_token": first},
    )


def read(text: str) -> dict[str, float]:
    """Samples by name and labels, as Prometheus' own reader has them."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_both_names_say_what_the_engine_holds() -> None:
    text = asyncio.run(metrics_text({"a": Loaded(load()), "dead": Loaded(None)})).decode()
    found, a = read(text), " engine=0 model_name=a"
    for name, value in {
        "num_requests_running": 3,
        "num_requests_waiting": 2,
        "kv_cache_usage_perc": 0.25,
        "num_preemptions_total": 1,
        "prefix_cache_queries_total": 100,
        "prefix_cache_hits_total": 60,
        "prompt_tokens_total": 100,
        "generation_tokens_total": 50,
        "spec_decode_num_drafts_total": 8,
        "spec_decode_num_draft_tokens_total": 30,
        "spec_decode_num_accepted_tokens_total": 12,
        "time_to_first_token_seconds_count": 4,
        "time_to_first_token_seconds_sum": 3.5,
        "request_time_per_output_token_seconds_count": 4,
    }.items():
        assert found[f"vllm:{name}{a}"] == value, name
    assert [found[f"vllm:spec_decode_num_accepted_tokens_per_pos_total{a} position={at}"] for at in range(3)] == [
        7,
        4,
        1,
    ]
    reasons = {"stop": 5, "length": 2, "abort": 3, "error": 0}
    for reason, count in reasons.items():
        assert found[f"vllm:request_success_total engine=0 finished_reason={reason} model_name=a"] == count
    assert found["vllm:cache_config_info block_size=16 engine=0 model_name=a num_gpu_blocks=40"] == 1
    buckets = [
        found[f"vllm:time_to_first_token_seconds_bucket engine=0 le={le} model_name=a"] for le in ("0.1", "1.0", "+Inf")
    ]
    assert buckets == [2, 3, 4]
    for name, value in {"samples_running": 3, "written_tokens_total": 50, "cache_pages": 40, "steps_total": 20}.items():
        assert found[f"outpace:{name}{a}"] == value
    assert found[f"outpace:engine_up{a}"] == 1 and found["outpace:engine_up engine=0 model_name=dead"] == 0
    assert found["outpace:samples_finished_total engine=0 finish=eos model_name=a"] == 4
    assert 'vllm:spec_decode_num_drafts_created{engine="0",model_name="a"} 0.0' in text


def test_vllm_bench_finds_its_counters() -> None:
    """What `vllm bench serve` does before and after a run: lines by their beginning, values by their end."""
    totals, positions = dict.fromkeys(("num_drafts", "num_draft_tokens", "num_accepted_tokens"), 0.0), {}
    for line in asyncio.run(metrics_text({"a": Loaded(load()), "b": Loaded(load())})).decode().splitlines():
        if not line.startswith("vllm:spec_decode") or not (name := line.split("{")[0]).endswith("_total"):
            continue
        value, short = float(line.split()[-1]), name.removeprefix("vllm:spec_decode_").removesuffix("_total")
        if short == "num_accepted_tokens_per_pos":
            at = int(line.split('position="')[1].split('"')[0])
            positions[at] = positions.get(at, 0) + value
        else:
            totals[short] += value
    assert totals == {"num_drafts": 16, "num_draft_tokens": 60, "num_accepted_tokens": 24}
    assert positions == {0: 14, 1: 8, 2: 2}
