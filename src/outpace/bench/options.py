"""What a benchmark measures. Imports no torch, so that a command line can build it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpace.errors import ConfigError, nearest

__all__ = ["PATHS", "PEERS", "BenchOptions", "CommonOptions", "GrowthOptions", "MicroOptions"]

PATHS = ("eager", "compiled")
PEERS = ("hf", "llama.cpp", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """What all measurements of one model are asked.

    Attributes:
        model: a zoo name, directory or hub id.
        draft: the drafter of `draft-model` and of the peers' assisted generation; "auto" = the model's own.
        inflate: parameters; above 0, the model is first inflated to that size, in a temporary folder.
        seed: of sampling, and of the bootstrap.
        dtype: "auto", "float32", "bfloat16".
        device: "auto", "cpu", "cuda".
        threads: of torch; 0 = as they are.
        wait_s: how long to wait for another benchmark on this machine to end.
        json, plot, markdown: files to write.
    """

    model: str = "stories"
    draft: str = "auto"
    inflate: int = 0
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 0
    wait_s: float = 600.0
    json: Path | None = None
    plot: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions(CommonOptions):
    """A speed benchmark of methods and peers on one model.

    Attributes:
        methods: names; settings may follow after colons: "draft-model:draft_len=4". Plain decoding is always measured.
        options: settings by method name, added to those in `methods`.
        prompts: names of shipped sets (stories, code, copy) or JSON-lines files of {"id", "text"}.
        peers: "hf" = transformers' generate (plain, prompt lookup, assisted); "llama.cpp", "openvino" = those engines
            (plain, prompt lookup, and plain in int8 and int4), each mode in a process of its own.
        paths: "eager" and "compiled" forwards, each a row.
        temperatures: 0 = greedy.
        max_tokens: most tokens per generation.
        num_prompts: of each set, from its head; 0 = all.
        repeats: repetitions of everything.
        with_memory: also run every arm in a fresh process for its peak memory.
        time_limit_s: stop after the first complete round of arms beyond this many seconds; 0 = never.
        peer_models: a folder that keeps the models converted for peers; None = they are converted for this run alone.

    Raises:
        ConfigError: a value that cannot be used.
    """

    methods: tuple[str, ...] = ("autoregressive", "prompt-lookup", "draft-model", "jacobi")
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ("stories", "code", "copy")
    peers: tuple[str, ...] = ()
    paths: tuple[str, ...] = ("compiled", "eager")
    temperatures: tuple[float, ...] = (0.0, 0.7)
    max_tokens: int = 128
    num_prompts: int = 0
    repeats: int = 3
    with_memory: bool = True
    time_limit_s: float = 0.0
    peer_models: Path | None = None

    def __post_init__(self) -> None:
        _check_known(self.paths, PATHS, "path")
        _check_known(self.peers, PEERS, "peer")
        for name in ("max_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", f"{name} must be 1 or more.")
        if not self.prompts or not self.paths or not self.temperatures:
            raise ConfigError("Nothing is left to measure.", "Name at least one prompt set, path and temperature.")
        if any(not 0 <= value < float("inf") for value in self.temperatures):
            raise ConfigError("A temperature is negative or not finite.", "Use 0 (greedy) or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroOptions:
    """Forwards, plain decoding, overhead and memory on random models of set sizes.

    Attributes:
        parts: "forward" T(k) against prepacked PyTorch and the memory floor; "plain" decoding against transformers;
            "overhead" outside the forwards; "memory" at peak.
        sizes: "30m", "350m" ("tiny" is for tests).
        dtypes: "bfloat16", "float32".
        widths: k of T(k).
        repeats: of each timing.
        threads: of torch; 0 = as they are.
        quick: tiny sizes and few repetitions, to see that everything runs.
        time_limit_s: leave out what would start later than this; 0 = never.
        wait_s: as in `BenchOptions`.
        json, markdown: files to write.
    """

    parts: tuple[str, ...] = ("forward", "plain", "overhead", "memory")
    sizes: tuple[str, ...] = ("30m", "350m")
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    repeats: int = 30
    threads: int = 0
    quick: bool = False
    time_limit_s: float = 0.0
    wait_s: float = 600.0
    json: Path | None = None
    markdown: Path | None = None

    def __post_init__(self) -> None:
        _check_known(self.parts, ("forward", "plain", "overhead", "memory"), "part")
        _check_known(self.sizes, ("tiny", "30m", "350m"), "size")
        _check_known(self.dtypes, ("bfloat16", "float32"), "dtype")
        if self.repeats < 1 or min(self.widths, default=0) < 1:
            raise ConfigError("A count is below 1.", "repeats and widths must be 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthOptions(CommonOptions):
    """How speed grows with batch, context and drafted nodes, against plain decoding.

    Attributes:
        is_compiled: the compiled path, where there is one.
        axes: "batch", "context", "budget".
        batches, contexts, budgets: the values of each axis.
        batch, context, budget: the value of an axis while another one varies.
        shares: of drafts that are right, each a curve of replayed drafts: the plain text, with that share of its tokens
            left right. They isolate cost from text.
        methods: further curves with drafts of their own; "{budget}" stands for the nodes, as in
            "draft-model:draft_len={budget}".
        max_tokens: a run ends when every row has written as many.
        repeats: of each point; sides take turns.

    Raises:
        ConfigError: a value that cannot be used.
    """

    is_compiled: bool = True
    axes: tuple[str, ...] = ("batch", "context", "budget")
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    contexts: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    batch: int = 1
    context: int = 128
    budget: int = 4
    shares: tuple[float, ...] = (0.5, 0.8)
    methods: tuple[str, ...] = ("prompt-lookup:draft_len={budget}", "opt-tree:budget={budget}")
    max_tokens: int = 32
    repeats: int = 3

    def __post_init__(self) -> None:
        _check_known(self.axes, ("batch", "context", "budget"), "axis")
        counts = (*self.batches, *self.contexts, *self.budgets, self.batch, self.context, self.budget)
        if min(*counts, self.max_tokens, self.repeats) < 1:
            raise ConfigError(
                "A count is below 1.", "Batches, contexts, budgets, tokens and repeats must be 1 or more."
            )
        if any(not 0 < share <= 1 for share in self.shares):
            raise ConfigError("A share of right drafts is outside 0 to 1.", "Use for example 0.8.")


def _check_known(given: tuple[str, ...], known: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"There is no {what} {name!r}.", nearest(name, known, what))
