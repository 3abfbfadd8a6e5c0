"""One model over several devices or machines: heads and MLP columns are split, each process holds its share.

Every process runs the same loop with the same seed and meets the others twice per layer, where shares are added up, and
at the head, where the logits of each part of the vocabulary are put side by side (Shoeybi et al., Megatron-LM, 2019,
section 3). All of them see the same logits, hence write the same text. Sums are taken in another order than in one
process, so logits agree up to rounding: in float64, 1e-12 of the largest.

    torchrun --nproc-per-node 2 my_script.py        each process: lm = outpace.load(model, split=join())
    outpace generate "Once upon a time" --tensor-parallel 2        starts them itself, on this machine
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import CapabilityError, ConfigError, OutpaceError
from outpace.models.graphs import Graphs
from outpace.models.spec import Spec
from outpace.models.transformer import Transformer
from outpace.models.weights import LayerWeights, Matrix, Weights
from outpace.types import NO_OUTPUTS, Outputs, Scores

__all__ = ["Split", "SplitTransformer", "join", "together"]

_PATIENCE = datetime.timedelta(seconds=120)  # for the slowest process, loading included
_END_S = 20.0


@dataclass(frozen=True, slots=True)
class Split:
    """This process's share of a model.

    Attributes:
        rank: its number, from 0.
        size: how many processes there are.
    """

    rank: int
    size: int

    def check(self, spec: Spec) -> None:
        """Refuse a model that cannot be split into equal shares.

        Raises:
            CapabilityError: it cannot; the message names what stands against it.
        """
        if spec.routing is not None:
            raise CapabilityError("A mixture of experts cannot be split over processes.", "Run it in one process.")
        for name, number in (
            ("query heads", spec.num_heads),
            ("key and value heads", spec.num_kv_heads),
            ("MLP columns", spec.ffn_size),
        ):
            if number % self.size:
                raise CapabilityError(
                    f"{number} {name} cannot be split over {self.size} processes.",
                    "Use a number of processes that divides the heads, the key and value heads and the MLP's width.",
                )
        if spec.qk_norm == "full":
            raise CapabilityError("Norms over all query heads at once are not split.", "Load it in one process.")

    def spec(self, whole: Spec) -> Spec:
        """Return the shape of a share: the residual stream is whole, heads and MLP columns are not."""
        return replace(
            whole,
            num_heads=whole.num_heads // self.size,
            num_kv_heads=whole.num_kv_heads // self.size,
            ffn_size=whole.ffn_size // self.size,
        )

    def layer(self, layer: LayerWeights, spec: Spec) -> LayerWeights:
        """Return a layer's share; `spec` is the whole model's."""
        query, heads = spec.q_size // self.size, spec.kv_size // self.size
        starts = [self.rank * query] + [spec.q_size + self.rank * heads + at * spec.kv_size for at in (0, 1)]
        rows = torch.cat(
            [torch.arange(start, start + n) for start, n in zip(starts, (query, heads, heads), strict=True)]
        )
        columns, ffn = torch.arange(self.rank * query, (self.rank + 1) * query), spec.ffn_size // self.size
        inner = torch.arange(self.rank * ffn, (self.rank + 1) * ffn)
        up = torch.cat([inner, inner + spec.ffn_size]) if spec.is_gated else inner
        return replace(
            layer,
            qkv=layer.qkv.rows(rows),
            o=_Summed(self, layer.o, columns),
            up=layer.up.rows(up),
            down=_Summed(self, layer.down, inner),
        )

    def head(self, weights: Weights) -> Weights:
        """Return what lies outside the layers, with this process's part of the head; the embedding stays whole."""
        weights.head = _Gathered(self, weights.head, is_kept=weights.is_tied)
        return weights

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over all processes; halves are added in float32."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
        with _explained():
            dist.all_reduce(wide)
        return wide.to(x.dtype)

    def gather(self, x: Tensor) -> list[Tensor]:
        """Return what each process has, in order; all have the same shape."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with _explained():
            dist.all_gather(parts, x.contiguous())
        return parts

    def check_alike(self, tokens: Tensor) -> None:
        """See that all processes are about to run the same forward.

        Raises:
            OutpaceError: they are not; what decides by the clock, for one, does not write alike twice.
        """
        weights = torch.arange(1, tokens.numel() + 1, device=tokens.device)
        told = torch.tensor([tokens.shape[0], tokens.shape[1], int((tokens.flatten() * weights).sum())])
        if any(not torch.equal(told, other) for other in self.gather(told)):
            raise OutpaceError(
                "The processes of a split model went different ways.",
                "Give all of them the same prompts, settings and seed, and a method that does not time itself.",
            )

    def agree(self, is_wished: bool) -> bool:
        """Return what the first process says, to all of them."""
        told = torch.tensor([int(is_wished)])
        with _explained():
            dist.broadcast(told, 0)
        return bool(told.item())


class SplitTransformer(Transformer):
    """A decoder whose layers are shared out; each process makes one, and all of them run the same forwards.

    Args:
        spec: the whole model's shape.
        weights: this process's share, as `Split` cuts it.
        split: whose share it is.
    """

    def __init__(self, spec: Spec, weights: Weights, split: Split) -> None:
        self._split = split
        super().__init__(split.spec(spec), weights, pack=False)
        self.path = f"split over {split.size}"

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run one forward together; see `outpace.types.Adapter`.

        Raises:
            OutpaceError: the processes do not run the same one, or another ended.
        """
        self._split.check_alike(tokens)
        return super().score(tokens, position, visible, cache, ask, outputs, inputs, skip)

    def use_graphs(self, graphs: Graphs | None) -> None:
        """Record nothing: what processes exchange is not recorded."""
        del graphs

    def trim_head(self, ids: Tensor) -> Transformer:
        """Refuse: the head is in several processes.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError("The head of a split model cannot be trimmed.", "Use a method with a drafter of its own.")


class _Summed(Matrix):
    """Some columns of a matrix; what all processes' columns give is added up, the bias once."""

    __slots__ = ("split",)

    def __init__(self, split: Split, whole: Matrix, columns: Tensor) -> None:
        super().__init__(whole.dense()[:, columns].contiguous(), whole.bias if split.rank == 0 else None)
        self.split = split

    def __call__(self, x: Tensor) -> Tensor:
        return self.split.sum(super().__call__(x))


class _Gathered(Matrix):
    """Some rows of a matrix; what all processes' rows give is put side by side."""

    __slots__ = ("size", "split")

    def __init__(self, split: Split, whole: Matrix, is_kept: bool) -> None:
        self.split, self.size = split, whole.shape[0]
        share = -(-self.size // split.size)
        own = slice(split.rank * share, (split.rank + 1) * share)

        def part(given: Tensor) -> Tensor:
            held = given[own]
            missing = share - len(held)  # of the last ones, which repeat the last row; it is cut off again
            if missing:
                return torch.cat([held, given[-1:].expand(missing, *given.shape[1:])])
            return held if is_kept else held.clone()  # a clone lets the whole go

        super().__init__(part(whole.dense()), None if whole.bias is None else part(whole.bias))

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat(self.split.gather(super().__call__(x)), dim=-1)[:, : self.size]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError):
        raise OutpaceError(
            "The processes of a split model lost each other.", "One of them ended, or never came: start them again."
        ) from None


def join(backend: str = "gloo") -> Split:
    """Meet the other processes that `torchrun` started; return this one's share.

    Args:
        backend: of torch.distributed: "gloo" on CPUs.

    Raises:
        ConfigError: this process was not started by `torchrun`.
        OutpaceError: the others do not come.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"{missing[0]} is not set.", "Start the processes with torchrun --nproc-per-node N.")
    with _explained():
        dist.init_process_group(backend, timeout=_PATIENCE)
    return Split(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def together(size: int, work: Callable[..., Any], *arguments: Any) -> Iterator[Split]:
    """Start processes on this machine that each do some work with their share; yield this process's share, the first.

    Args:
        size: processes, this one included.
        work: called as work(split, *arguments) in the others, which print nothing and ignore Ctrl-C.
        *arguments: can be pickled.

    Raises:
        OutpaceError: the others do not come, or end early.
    """
    spawn = multiprocessing.get_context("spawn")
    before = torch.get_num_threads()
    threads = max(1, before // size)  # the cores are shared out, too
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        place = (Path(folder) / "meet").as_uri()
        others = [
            spawn.Process(target=_follow, args=(rank, size, place, threads, work, arguments), daemon=True)
            for rank in range(1, size)
        ]
        for other in others:
            other.start()
        try:
            yield _meet(0, size, place)
        finally:
            torch.set_num_threads(before)
            with contextlib.suppress(AssertionError, ValueError):  # they never met
                dist.destroy_process_group()
            for other in others:
                other.join(_END_S)
                if other.is_alive():
                    other.kill()
                    other.join()


def _meet(rank: int, size: int, place: str) -> Split:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")  # nobody else is asked in
    with _explained():
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size, timeout=_PATIENCE)
    return Split(rank, size)


def _follow(
    rank: int, size: int, place: str, threads: int, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Do the work of a process that is not the first; its words and errors are those of the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        split = _meet(rank, size, place)
        try:
            work(split, *arguments)
        except OutpaceError:  # the first says it
            pass
        finally:
            dist.destroy_process_group()
