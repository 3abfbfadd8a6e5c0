"""Peak memory of one arm, in a fresh process, beyond the libraries that it imports.

Run by `measure` as `python -m outpace.bench.memory JOB`, with the job as JSON; prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outpace import kernels
from outpace.bench.machine import peak_memory

if TYPE_CHECKING:
    import torch

__all__ = ["measure", "stored_parameters", "weight_bytes"]

_TIMEOUT_S = 900


def measure(job: Mapping[str, Any], ids: list[int], max_tokens: int, threads: int) -> dict[str, Any]:
    """Run an arm once in a fresh process and return its memory.

    Args:
        job: from `Arm.memory_job`.
        ids: the prompt.
        max_tokens: tokens to write, past end tokens, so that every arm's cache grows to the same length.
        threads: of torch.

    Returns:
        Bytes: `peak` beyond the imported libraries, `weights` (target and drafter in the dtype computed in), `cache`;
        and `ratio` = peak / (weights + cache). Only {"error": sentence} when the process failed.
    """
    if job["kind"] == "engine":
        from outpace.bench.engines import measure_memory

        return measure_memory(job["engine"], job["job"], ids, max_tokens)
    task = {**job, "ids": ids, "max_tokens": max_tokens, "threads": threads}
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
    command = [sys.executable, "-m", "outpace.bench.memory", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return {"error": f"The memory run failed: {detail[-1] if detail else 'no output'}"}
    assert isinstance(found, dict)
    return found


def stored_parameters(model: str | Path) -> int:
    """Return how many numbers the tensors of a model directory or GGUF file hold."""
    from outpace.models.loading import open_tensors

    return sum(prod(entry.shape) for entry in open_tensors(Path(model)).entries.values())


def weight_bytes(model: Path, dtype: torch.dtype) -> int:
    """Return what weights take up in a dtype; those of a GGUF file stay as they are stored."""
    from outpace.models.loading import open_tensors

    if model.is_file():
        return sum(entry.num_bytes for entry in open_tensors(model).entries.values())
    return stored_parameters(model) * dtype.itemsize


def _main(task: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(task["threads"])
    run = _ours if task["kind"] == "ours" else _hf
    return run(task)


def _warm_up(dtype: Any) -> None:
    """Touch what every program with a matrix product holds: thread pools, and oneDNN's or MKL's code."""
    import torch

    a = torch.ones(64, 64, dtype=dtype)
    (a @ a).sum().item()


def _ours(task: dict[str, Any]) -> dict[str, Any]:
    from outpace.api.engine import LanguageModel
    from outpace.methods.registry import load_method
    from outpace.models.loading import load_model, pick_device, pick_dtype, read_config, resolve

    is_file = resolve(task["directory"]).is_file()
    dtype = pick_dtype(task["dtype"], read_config(resolve(task["directory"])), pick_device("cpu"))
    _warm_up(dtype)
    method = load_method(task["method"]).from_settings(task["settings"])
    before = peak_memory()
    kind = task["dtype"] if is_file else str(dtype).removeprefix("torch.")
    target = load_model(task["directory"], dtype=kind, device="cpu", kernels=kernels if task["is_compiled"] else None)
    lm = LanguageModel(target, None, name="memory", dtype=kind, device="cpu")
    lm.is_compiled = task["is_compiled"]
    caches: list[int] = []
    _note_caches(target, caches)
    result = lm.generate(task["ids"], method=method, max_tokens=task["max_tokens"])
    drafts = [getattr(method, role) for role in method.needs.models]
    weights = sum(weight_bytes(resolve(name), dtype) for name in (task["directory"], *drafts))
    return _facts(before, weights, max(caches, default=0), len(result.tokens))


def _note_caches(target: Any, sizes: list[int]) -> None:
    """Note the size of every cache that the target makes."""
    make = target.new_cache

    def noting(*arguments: Any, **named: Any) -> Any:
        cache = make(*arguments, **named)
        sizes.append(cache.num_bytes)
        return cache

    target.new_cache = noting


def _hf(task: dict[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401 - imported libraries are not the arm's memory

    from outpace.bench.arms import Request
    from outpace.bench.peers import HfArm, load_hf

    dtype = getattr(torch, task["dtype"])
    _warm_up(dtype)
    before = peak_memory()
    model = load_hf(task["directory"], dtype)
    assistant = load_hf(task["draft"], dtype) if task["mode"] == "assisted" else None
    arm = HfArm(model, task["mode"], task["directory"], "cpu", assistant, task["draft"])
    ids = task["ids"]
    sample = arm.run(Request(tuple(ids), task["max_tokens"], 0.0, 0))
    config = model.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * dim * dtype.itemsize
    names = [task["directory"], *([task["draft"]] if assistant is not None else [])]
    weights = sum(stored_parameters(name) for name in names) * dtype.itemsize
    return _facts(before, weights, per_token * (len(ids) + task["max_tokens"]), len(sample.tokens))


def _facts(before: int, weights: int, cache: int, tokens: int) -> dict[str, Any]:
    peak = peak_memory() - before
    ratio = peak / (weights + cache) if weights + cache else 0.0
    return {"peak": peak, "libraries": before, "weights": weights, "cache": cache, "ratio": ratio, "tokens": tokens}


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
