"""Peers as arms, all on the same weights: transformers' `generate` here, other engines through `outpace.bench.engines`.

transformers runs plain, with prompt lookup and assisted, with its own defaults. Every arm writes under the task's law
alone, so what a checkpoint's generation_config.json asks for is left out here as it is in ours. Sampling at a
temperature has no other cut (top_k = 0), as ours; its random numbers are torch's, so its text differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from outpace.bench.arms import Arm, Request, Sample
from outpace.bench.engines import Workplace, make_engine_arms
from outpace.bench.machine import synchronise
from outpace.bench.options import BenchOptions
from outpace.bench.report import Skipped

__all__ = ["HfArm", "gather_peers", "load_hf", "make_peers"]

_MODES: dict[str, dict[str, Any]] = {"plain": {}, "prompt-lookup": {"prompt_lookup_num_tokens": 10}, "assisted": {}}


def load_hf(directory: str | Path, dtype: torch.dtype | str, device: str = "cpu") -> Any:
    """Return transformers' model of a directory, quietly, without the checkpoint's own wishes for a text."""
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    path = Path(directory)
    if path.is_file():  # a GGUF file, which transformers decodes to `dtype`
        place, extra = path.parent, {"gguf_file": path.name}
    else:
        place, extra = path, {}
    model: Any = AutoModelForCausalLM.from_pretrained(str(place), dtype=dtype, **extra)
    model.generation_config = GenerationConfig()
    return model.to(device).eval()


def gather_peers(
    options: BenchOptions,
    place: Workplace,
    draft: Path | None,
    device: str,
    stack: ExitStack,
    tell: Callable[[str], None],
) -> tuple[list[Arm], list[Skipped], dict[str, str]]:
    """Return the arms of all peers asked for, what is left out, and the versions of engines' packages.

    Args:
        options: what is measured.
        place: the model, and where it is converted.
        draft: the assistant's directory, or None.
        device: "cpu" or "cuda"; engines run on the CPU only.
        stack: closes the engines' processes.
        tell: called with sentences on the progress.
    """
    arms: list[Arm] = []
    skipped: list[Skipped] = []
    versions: dict[str, str] = {}
    for name in dict.fromkeys(options.peers):
        if name == "hf":
            found, missing = make_peers(place.source, draft, place.dtype, device)
            arms, skipped = [*arms, *found], [*skipped, *missing]
        elif device != "cpu":
            skipped.append(Skipped(name, "This peer is measured on the CPU only."))
        else:
            engines, missing, known = make_engine_arms(name, place, stack, options.temperatures, tell)
            arms, skipped, versions = [*arms, *engines], [*skipped, *missing], {**versions, **known}
    return arms, skipped, versions


def make_peers(
    directory: str | Path, draft: str | Path | None, dtype: torch.dtype, device: str = "cpu"
) -> tuple[list[HfArm], list[Skipped]]:
    """Return the arms of transformers on a model.

    Args:
        directory: the target's.
        draft: the assistant's directory, or None to leave assisted generation out.
        dtype: of both.
        device: of both.
    """
    try:
        import transformers  # noqa: F401 - only whether it is there
    except ImportError:
        return [], [Skipped("hf", "transformers is not installed: pip install 'outpace[transformers]'.")]
    try:
        model = load_hf(directory, dtype, device)
    except (ImportError, ValueError, OSError) as error:  # GGUF files ask for further packages, and not all are read
        return [], [Skipped("hf", f"transformers cannot read the model: {str(error).splitlines()[0]}")]
    arms = [HfArm(model, mode, str(directory), device) for mode in ("plain", "prompt-lookup")]
    if draft is None:
        return arms, [Skipped("hf:assisted", "No draft model is known for this target.")]
    assistant = load_hf(draft, dtype, device)
    return [*arms, HfArm(model, "assisted", str(directory), device, assistant, str(draft))], []


class HfArm:
    """One mode of transformers' generate."""

    path, precision = "hf", ""

    def __init__(
        self, model: Any, mode: str, directory: str, device: str = "cpu", assistant: Any = None, draft: str = ""
    ) -> None:
        self.model, self.assistant, self.device = model, assistant, device
        self.method, self.name, self.baseline, self.counterpart = mode, f"hf:{mode}", "hf:plain", ""
        self.directory, self.draft = directory, draft

    def run(self, task: Request) -> Sample:
        """Make one generation. What came with the first tokens counts as prefill, time and tokens alike."""
        clock = _Clock(self.device)
        forwards = 0

        def count(*_: Any) -> None:
            nonlocal forwards
            forwards += 1

        ids = torch.tensor([task.ids], device=self.device)
        hook = self.model.register_forward_hook(count)
        torch.manual_seed(task.seed)
        try:
            synchronise(self.device)
            began = time.perf_counter()
            out = self.model.generate(ids, **self._arguments(task), stopping_criteria=[clock])
            synchronise(self.device)
            ended = time.perf_counter()
        finally:
            hook.remove()
        tokens = _until_stop(out[0, len(task.ids) :].tolist(), task)
        first = clock.length - len(task.ids)
        return Sample(
            tokens=tokens,
            prefill_s=clock.time - began,
            decode_s=ended - clock.time,
            num_decoded=max(0, len(tokens) - first),
            finish="eos" if tokens and tokens[-1] in task.end_tokens else "length",
            forwards=forwards,
        )

    def _arguments(self, task: Request) -> dict[str, Any]:
        law: dict[str, Any] = {"do_sample": False}
        if task.temperature > 0:
            law = {"do_sample": True, "temperature": task.temperature, "top_k": 0, "top_p": 1.0}
        ends = list(task.end_tokens) or None
        arguments = {
            "attention_mask": torch.ones(1, len(task.ids), dtype=torch.int64, device=self.device),
            "max_new_tokens": task.max_tokens,
            "eos_token_id": ends,
            "pad_token_id": ends[0] if ends else 0,
            **law,
            **_MODES[self.method],
        }
        if self.assistant is not None:
            arguments["assistant_model"] = self.assistant
        return arguments

    def memory_job(self) -> dict[str, Any]:
        """Return what a fresh process needs."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"kind": "hf", "directory": self.directory, "dtype": dtype, "mode": self.method, "draft": self.draft}


class _Clock:
    """A stopping criterion that never stops: it notes when the first tokens were there, and how many."""

    def __init__(self, device: str) -> None:
        self.device, self.time, self.length = device, 0.0, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if not self.length:
            synchronise(self.device)
            self.time, self.length = time.perf_counter(), int(input_ids.shape[1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _until_stop(tokens: list[int], task: Request) -> list[int]:
    for index, token in enumerate(tokens[: task.max_tokens]):
        if token in task.end_tokens:
            return tokens[: index + 1]
    return tokens[: task.max_tokens]
