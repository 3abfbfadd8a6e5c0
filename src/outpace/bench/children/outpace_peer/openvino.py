"""OpenVINO GenAI: `LLMPipeline`, plain or with its prompt lookup, on an export of optimum-intel or a GGUF file."""

from __future__ import annotations

import importlib
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .base import Failure, Job, Request, finish

__all__ = ["OpenVino"]

# The settings of OpenVINO GenAI's own prompt-lookup sample.
_DRAFT_LEN, _NGRAM = 5, 3
_PACKAGES = ("openvino-genai", "optimum-intel", "nncf")
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVino:
    """One `LLMPipeline`; a directory with `openvino_model.xml`, or a GGUF file, is its model."""

    def __init__(self) -> None:
        self.pipeline: Any = None
        self.library: Any = None
        self.genai: Any = None
        self.mode = ""
        self.vocab_size = 0

    def versions(self) -> dict[str, str]:
        """Import openvino and openvino_genai and return versions."""
        try:
            self.library, self.genai = (importlib.import_module(name) for name in ("openvino", "openvino_genai"))
        except ImportError as error:
            raise Failure(f"openvino-genai cannot be imported ({error}).") from None
        found = {}
        for name in _PACKAGES:
            try:
                found[name] = version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found

    def convert(self, source: str, target: str, precision: str) -> None:
        """Export a Hugging Face directory, or compress an exported one to int8 or int4."""
        self.versions()
        if precision in _HINTS:
            _export(source, target)
        else:
            self._compress(Path(source), Path(target), precision)

    def _compress(self, source: Path, target: Path, precision: str) -> None:
        """Compress weights with nncf's defaults; groups are made smaller where a matrix cannot be cut into them."""
        try:
            nncf = importlib.import_module("nncf")
        except ImportError as error:
            raise Failure(f"nncf cannot be imported ({error}).") from None
        settings: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
        if precision == "int4":
            advanced = importlib.import_module("nncf.quantization.advanced_parameters")
            adjust = advanced.AdvancedCompressionParameters(
                group_size_fallback_mode=advanced.GroupSizeFallbackMode.ADJUST
            )
            settings = {"mode": nncf.CompressWeightsMode.INT4_SYM, "advanced_parameters": adjust}
        model = self.library.Core().read_model(source / "openvino_model.xml")
        target.mkdir(parents=True, exist_ok=True)
        self.library.save_model(nncf.compress_weights(model, **settings), target / "openvino_model.xml")
        for file in source.glob("*.json"):
            (target / file.name).write_bytes(file.read_bytes())

    def open(self, job: Job) -> None:
        """Load a model: weights and cache in the precision asked for, or int8 and int4 with all defaults."""
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads}
        # A GGUF file says itself how its weights are stored; how it is computed is left to the engine.
        if job.precision in _HINTS and not job.directory.endswith(".gguf"):
            hint = _HINTS[job.precision]
            settings |= {"INFERENCE_PRECISION_HINT": hint, "KV_CACHE_PRECISION": hint}
        if job.mode == "prompt-lookup":
            settings["prompt_lookup"] = True
        self.pipeline = self.genai.LLMPipeline(job.directory, "CPU", **settings)
        self.mode, self.vocab_size = job.mode, job.vocab_size

    def run(self, task: Request) -> dict[str, Any]:
        """Make one generation; sampling has no cut, as ours."""
        watch = _watch(self.genai)
        ids = self.library.Tensor(importlib.import_module("numpy").array([task.ids], dtype="int64"))
        law = self._law(task)
        began = time.perf_counter()
        result = self.pipeline.generate(ids, law, watch)
        ended = time.perf_counter()
        tokens = [int(token) for token in result.tokens[0]]
        first, count = (watch.times[0], watch.counts[0]) if watch.times else (ended, 0)
        return finish(tokens, task, (began, first, ended), count, len(watch.times))

    def _law(self, task: Request) -> Any:
        law = self.genai.GenerationConfig()
        law.max_new_tokens, law.rng_seed = task.max_tokens, task.seed
        law.do_sample = task.temperature > 0
        if law.do_sample:
            law.temperature, law.top_p, law.top_k = task.temperature, 1.0, self.vocab_size
        law.ignore_eos = not task.end_tokens
        if task.end_tokens:
            law.eos_token_id, law.stop_token_ids = task.end_tokens[0], set(task.end_tokens)
        if self.mode == "prompt-lookup":
            law.num_assistant_tokens, law.max_ngram_size = _DRAFT_LEN, _NGRAM
        return law


def _export(source: str, target: str) -> None:
    try:
        models = importlib.import_module("optimum.intel")
    except Exception as error:  # a clash of versions shows as any error
        raise Failure(f"optimum-intel cannot be imported ({error}).") from None
    model = models.OVModelForCausalLM.from_pretrained(source, export=True, compile=False, load_in_8bit=False)
    model.save_pretrained(target)


def _watch(genai: Any) -> Any:
    """Return a streamer that notes when tokens came, and how many at once."""

    class Watch(genai.StreamerBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []
            self.counts: list[int] = []

        def write(self, token: Any) -> Any:
            self.times.append(time.perf_counter())
            self.counts.append(1 if isinstance(token, int) else len(token))
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    return Watch()
