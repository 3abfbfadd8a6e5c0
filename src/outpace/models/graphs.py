"""Recorded forwards: a shape that comes again is recorded once and then replayed, kernel by kernel, without Python.

On a GPU a small forward takes less time than the host needs to launch its kernels; a CUDA graph launches them all at
once. A graph holds addresses and numbers as they were when it was recorded, so what is recorded has to be a function of
tensors alone: everything that changes between two steps (tokens, positions, valid cache entries per row, who sees whom)
is copied into tensors of the graph's own before a replay, and everything else (shapes, the slots looked at, where the
cache lies) is part of the key that the graph is found by.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from outpace.errors import ConfigError

__all__ = ["FIRST_EXTENT", "MODES", "Graph", "Graphs", "Recorder", "extent_for", "make_graphs", "record_on_cuda"]

MODES = ("auto", "on", "off")
MOST_GRAPHS = 64  # kept; the one that was replayed longest ago goes first
PATIENCE = 4  # in "auto" mode, a shape is recorded when it comes for this time
FIRST_EXTENT = 256  # slots; more are looked at in powers of two, so that few graphs serve a growing text; see new_cache
# What a first replay may differ by from the same forward run plainly, relative to the largest value.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}

Forward = Callable[..., tuple[Tensor, ...]]  # of tensors (or None), as many as were given


class Graph(Protocol):
    """A recorded forward, as `torch.cuda.CUDAGraph` is one."""

    def replay(self) -> None:
        """Do what was recorded, on the tensors that it was recorded on."""
        ...

    def pool(self) -> Any:
        """Return the memory that it computes in, which others may share."""
        ...


Recorder = Callable[[Callable[[], tuple[Tensor, ...]], Any], tuple[Graph, tuple[Tensor, ...]]]


def record_on_cuda(
    device: torch.device, function: Callable[[], tuple[Tensor, ...]], pool: Any
) -> tuple[Graph, tuple[Tensor, ...]]:
    """Record a function on a CUDA device; return the graph, and the tensors that each replay fills.

    Other threads may use the device meanwhile.

    Args:
        device: where it runs.
        function: launches kernels only; it allocates in the graph's own memory.
        pool: of another graph, to share its memory; None = a new one.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        found = function()
    return graph, found


@dataclass(slots=True)
class Recording:
    """One graph with the tensors that it reads and fills, and what has to outlive it."""

    given: list[Tensor | None]
    graph: Graph
    found: tuple[Tensor, ...]
    kept: Sequence[object]


@dataclass(slots=True)
class Graphs:
    """The graphs of one model, in memory that they share: forwards of one model run one after the other, in one stream.

    Attributes:
        mode: "auto" = a shape is recorded when it comes again and again, "on" = when it comes first.
        record: makes a graph of a function.
        num_recorded, num_replayed, num_plain: forwards so far: recorded, replayed, run without a graph.
        fault: why recording was given up, "" = it was not.
    """

    mode: str
    record: Recorder
    num_recorded: int = 0
    num_replayed: int = 0
    num_plain: int = 0
    fault: str = ""
    _known: OrderedDict[Hashable, Recording] = field(default_factory=OrderedDict)
    _seen: OrderedDict[Hashable, int] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pool: Any = None

    def fresh(self) -> Graphs:
        """Return the same without any graph, for a model with other weights."""
        return Graphs(self.mode, self.record)

    def run(
        self, key: Hashable, forward: Forward, given: Sequence[Tensor | None], kept: Sequence[object] = ()
    ) -> tuple[Tensor, ...]:
        """Return what `forward(*given)` returns, from a replay where there is a graph for the key.

        Args:
            key: everything that the forward depends on but the values in `given`, their shapes included.
            forward: a function of tensors that never looks at their values; running it twice does what running it
                once does.
            given: its arguments.
            kept: what a graph reads beside them and the caller's cache; it lives as long as the graph.
        """
        if self.fault or not self._is_due(key):
            return self._plain(forward, given)
        with self._lock:  # the graph's tensors are shared by all threads
            recording = self._known.get(key)
            if recording is None:
                return self._first(key, forward, given, kept)
            self._known.move_to_end(key)
            with torch.inference_mode():
                for own, new in zip(recording.given, given, strict=True):
                    if own is not None and new is not None:
                        own.copy_(new, non_blocking=True)
                recording.graph.replay()
            self.num_replayed += 1
            return _own(recording.found)

    def _plain(self, forward: Forward, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            found = forward(*given)
        self.num_plain += 1
        return _own(found)

    def _is_due(self, key: Hashable) -> bool:
        """Return whether a forward of this key is to be recorded or replayed."""
        if self.mode == "on" or key in self._known:
            return True
        count = self._seen.pop(key, 0) + 1
        self._seen[key] = count
        if len(self._seen) > 4 * MOST_GRAPHS:
            self._seen.popitem(last=False)
        return count >= PATIENCE

    def _first(
        self, key: Hashable, forward: Forward, given: Sequence[Tensor | None], kept: Sequence[object]
    ) -> tuple[Tensor, ...]:
        """Run a forward plainly, which also loads the kernels that it takes, then record it for the next time."""
        found = self._plain(forward, given)
        try:
            with torch.inference_mode():
                own = [None if tensor is None else tensor.clone() for tensor in given]
                graph, filled = self.record(lambda: forward(*own), self._pool)
                graph.replay()
                is_right = all(_agree(*pair) for pair in zip(filled, found, strict=True))
        except RuntimeError as error:
            self.fault = f"CUDA graphs were given up: {(str(error).strip().splitlines() or ['?'])[0]}"
            return found
        if not is_right:
            self.fault = "CUDA graphs were given up: a replay did not give what the forward gives."
            return found
        self.num_recorded, self._pool = self.num_recorded + 1, self._pool or graph.pool()
        self._known[key] = Recording(own, graph, filled, kept)
        while len(self._known) > MOST_GRAPHS:
            self._known.popitem(last=False)
        return found


def _own(found: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return copies made outside inference mode: callers may write into what they get."""
    with torch.no_grad():
        return tuple(tensor.clone() for tensor in found)


def _agree(ours: Tensor, plain: Tensor) -> bool:
    """Return whether two results differ by rounding at most; recording is rare, so the device may be waited for."""
    finite = plain[plain.isfinite()].abs()
    largest = float(finite.amax()) if finite.numel() else 0.0
    return torch.allclose(ours, plain, rtol=0, atol=TOLERANCE[plain.dtype] * largest, equal_nan=True)


def extent_for(used: int, slots: int) -> int:
    """Return how many slots a forward looks at that needs `used` of them: few sizes, so that few graphs are needed."""
    return min(slots, max(FIRST_EXTENT, 1 << (used - 1).bit_length()))


def make_graphs(mode: str, device: torch.device) -> Graphs | None:
    """Return the graphs of a model on a device, or None where none are wanted.

    Raises:
        ConfigError: no such mode, or "on" without a CUDA device.
    """
    if mode not in MODES:
        raise ConfigError(f"graphs is {mode!r}.", f"Use one of {', '.join(MODES)}.")
    if device.type != "cuda" and mode == "on":
        raise ConfigError(f"There are no CUDA graphs on {device.type}.", "Use graphs=auto, or a CUDA device.")
    return Graphs(mode, partial(record_on_cuda, device)) if device.type == "cuda" and mode != "off" else None
