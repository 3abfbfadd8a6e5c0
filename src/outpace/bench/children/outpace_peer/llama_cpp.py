"""llama.cpp through llama-cpp-python: `Llama.generate`, plain or with its prompt lookup."""

from __future__ import annotations

import ctypes
import importlib
import os
import time
from importlib.metadata import version
from typing import Any

from .base import Failure, Job, Request, finish

__all__ = ["LlamaCpp"]

_DRAFT_LEN = 10  # its default
_QUANTISED = {"int8": "LLAMA_FTYPE_MOSTLY_Q8_0", "int4": "LLAMA_FTYPE_MOSTLY_Q4_0"}
_FLOAT32 = 0  # GGML_TYPE_F32


class LlamaCpp:
    """One `Llama` object; a GGUF file is its model."""

    def __init__(self) -> None:
        self.llama: Any = None
        self.library: Any = None
        self.evals = 0

    def versions(self) -> dict[str, str]:
        """Import llama_cpp and return its version."""
        try:
            self.library = importlib.import_module("llama_cpp")
        except ImportError as error:
            raise Failure(f"llama-cpp-python cannot be imported ({error}).") from None
        return {"llama-cpp-python": version("llama-cpp-python")}

    def convert(self, source: str, target: str, precision: str) -> None:
        """Quantise a GGUF file with llama.cpp's own tool."""
        self.versions()
        settings = self.library.llama_model_quantize_default_params()
        settings.ftype = getattr(self.library, _QUANTISED[precision])
        failed = self.library.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings))
        if failed or not os.path.exists(target):
            raise Failure(f"llama.cpp could not quantise the model to {precision}.")

    def open(self, job: Job) -> None:
        """Load a GGUF file; the cache is float32 for float32 weights, else llama.cpp's default (float16)."""
        settings: dict[str, Any] = {"n_threads": job.threads, "n_threads_batch": job.threads, "n_ctx": job.capacity}
        if job.precision == "float32":
            settings |= {"type_k": _FLOAT32, "type_v": _FLOAT32}
        if job.mode == "prompt-lookup":
            lookup = importlib.import_module("llama_cpp.llama_speculative").LlamaPromptLookupDecoding
            settings |= {"draft_model": lookup(num_pred_tokens=_DRAFT_LEN), "logits_all": True}
        self.llama = self.library.Llama(job.directory, verbose=False, **settings)
        evaluate = self.llama.eval

        def count(tokens: Any) -> None:
            self.evals += 1
            evaluate(tokens)

        self.llama.eval = count

    def run(self, task: Request) -> dict[str, Any]:
        """Make one generation; sampling has no cut, as ours."""
        self.llama.reset()  # else it would go on from the prefix that it still holds
        self.llama.set_seed(task.seed)
        self.evals = 0
        law = {"temp": task.temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
        tokens: list[int] = []
        first = began = time.perf_counter()
        for token in self.llama.generate(task.ids, **law):
            if not tokens:
                first = time.perf_counter()
            tokens.append(token)
            if len(tokens) == task.max_tokens or token in task.end_tokens:
                break
        return finish(tokens, task, (began, first, time.perf_counter()), 1, self.evals)
