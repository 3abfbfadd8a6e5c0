"""Packed weights kept between starts: the same numbers as packed anew, whatever happened to the files."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from gguf_layouts import BASE, write_gguf
from pairs import SOURCES, saved_pair
from test_lora import pair, save

from outpace import kernels, store
from outpace.errors import ConfigError
from outpace.kernels import packed_file, shelf
from outpace.kernels.rounded import RoundedKernels
from outpace.models import loading
from outpace.models.loading import load_model
from outpace.models.seq2seq import loading as reading
from outpace.models.transformer import Transformer

pytestmark = pytest.mark.skipif(kernels.load_library() is None, reason=kernels.note())
TEXT = torch.tensor([[1, 5, 9, 2, 30, 4, 7, 11]])


class Starts:
    """Loads as processes would, with a folder of its own, and counts how often weights were read from their files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.count = folder, 0
        assemble = loading.assemble

        def counted(*arguments: Any) -> Any:
            self.count += 1
            return assemble(*arguments)

        monkeypatch.setattr(loading, "assemble", counted)
        monkeypatch.setattr(store, "packed_folder", lambda: folder)
        monkeypatch.setattr(shelf, "SMALLEST", 0)
        monkeypatch.setattr(shelf, "SETTLED_S", 0.0)

    def __call__(self, path: Path, dtype: str = "float32", **more: Any) -> Transformer:
        model = load_model(path, dtype, "cpu", kernels=kernels, **more)
        assert model.path == "compiled"
        return model

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.weights"))


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Starts:
    return Starts(tmp_path / "packed", monkeypatch)


def numbers(model: Transformer) -> list[torch.Tensor]:
    """Logits of every position, with those of a cut head, and embeddings."""
    found, ids = [model.embed(TEXT)], torch.tensor([3, 1, 8])
    for decoder in (model, model.trim_head(ids)):
        cache = decoder.new_cache(1, 16)
        cache.reserve(8)
        places, ask = torch.arange(8)[None], torch.arange(8)[None]
        found.append(decoder.score(TEXT, places, None, cache, ask).logits)
    return found


def same(left: Transformer, right: Transformer) -> bool:
    return all(torch.equal(*pair) for pair in zip(numbers(left), numbers(right), strict=True))


def quantised(folder: Path, kind: str, **more: Any) -> Path:
    torch.manual_seed(3)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    shape = {**BASE, "hidden_size": 256, "intermediate_size": 256, **heads, **more}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**shape))
    return write_gguf(model, folder / f"{kind}.gguf", kind)


@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q4_1", "MXFP4"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_kept_weights_are_those_of_the_files(kind: str, is_tied: bool, starts: Starts, tmp_path: Path) -> None:
    path = quantised(tmp_path, kind, tie_word_embeddings=is_tied)
    dtype = "float32" if kind == "F32" else "auto"
    first, second = starts(path, dtype), starts(path, dtype)
    assert starts.count == 1 and len(starts.files) == 1
    assert same(first, second) and first.notes == second.notes and first.is_quantised == second.is_quantised
    assert first._compiled.num_bytes == second._compiled.num_bytes  # type: ignore[union-attr]


@pytest.mark.parametrize("case", ["marian", "bart-untied", "t5-gated", "umt5"])
@pytest.mark.parametrize("chosen", [kernels, RoundedKernels()], ids=["plain", "int8"])
def test_kept_sides_are_those_of_the_files(
    case: str, chosen: Any, starts: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = saved_pair(case, tmp_path)
    first = load_model(directory, "float32", "cpu", kernels=chosen)
    monkeypatch.setattr(reading, "assemble_pair", None)  # nobody reads the files again
    assert len(starts.files) == 1
    second = load_model(directory, "float32", "cpu", kernels=chosen)
    texts = []
    for model in (first, second):
        assert model.path == "compiled" and model.is_invariant
        cache = model.new_cache(3, 16)
        model.encode(SOURCES, cache)
        texts.append(model.score(TEXT.expand(3, 8), torch.arange(8).expand(3, 8), None, cache).logits)
    assert torch.equal(*texts) and first.notes == second.notes


def test_small_pages_are_read_in_place_of_mapped(starts: Starts, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, mapped = starts(tiny), starts(tiny)
    (path,) = starts.files

    def is_mapped() -> bool:
        return str(path) in Path("/proc/self/maps").read_text()

    assert is_mapped()
    del mapped
    gc.collect()
    monkeypatch.setattr(packed_file, "MOST_FAULTS", -1)
    second = starts(tiny)
    assert not is_mapped() and starts.count == 1 and same(first, second)


def put(path: Path, content: bytes) -> None:
    path.unlink()  # the old file may still be mapped into this process
    path.write_bytes(content)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "last byte gone": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "one bit of a weight": lambda content: flipped(content, 5000),
    "a page of zeros": lambda content: content[:4096] + bytes(4096) + content[8192:],
    "one bit of the description": lambda content: flipped(content, len(content) - 200),
    "another length": lambda content: flipped(content, len(content) - 20),
    "another file": lambda content: b"GGUF" * 1000,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_noticed_and_made_anew(name: str, starts: Starts, tiny: Path) -> None:
    first = starts(tiny)
    (path,) = starts.files
    whole = path.read_bytes()
    put(path, DAMAGE[name](whole))
    assert same(first, starts(tiny)) and starts.count == 2
    assert path.read_bytes() == whole
    assert same(first, starts(tiny)) and starts.count == 2


def test_what_changes_the_weights_is_another_file(starts: Starts, tmp_path: Path) -> None:
    path = quantised(tmp_path, "Q8_0", max_position_embeddings=64)
    adapter = save(tmp_path / "lora", pair("model.layers.0.mlp.down_proj", 256, 256))
    changes: list[dict[str, Any]] = [{}, {"dtype": "float32"}, {"dtype": "bfloat16"}, {"adapter": adapter}]
    for index, change in enumerate(changes, 1):
        arguments = {"dtype": "auto", **change}
        assert same(starts(path, **arguments), starts(path, **arguments))
        assert starts.count == len(starts.files) == index
    starts(path, "auto", context=32)  # a shorter text needs no other weights
    assert starts.count == 4
    os.utime(adapter / "adapter_config.json")
    starts(path, "auto", adapter=adapter)
    os.utime(path)
    starts(path, "auto")
    assert starts.count == len(starts.files) == 6


def test_a_file_that_changed_a_moment_ago_is_not_believed(
    starts: Starts, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "SETTLED_S", 1e9)
    starts(tiny)
    assert not starts.files


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    starts: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = quantised(tmp_path, "F32")
    assemble = loading.assemble

    def disturbed(*arguments: Any) -> Any:
        found = assemble(*arguments)
        os.utime(path)
        return found

    monkeypatch.setattr(loading, "assemble", disturbed)
    starts(path)
    assert not starts.files


def full(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))


def fails_late(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


def is_a_file(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    starts.folder.write_text("")


@pytest.mark.parametrize("spoil", [full, fails_late, is_a_file])
def test_where_nothing_can_be_kept_only_that_is_lost(
    spoil: Callable[..., None], starts: Starts, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(starts, monkeypatch)
    first, second = starts(tiny), starts(tiny)
    assert starts.count == 2 and same(first, second)
    assert not list(starts.folder.glob("*.weights")) and not list(starts.folder.glob("*.part"))
    (note,) = [note for note in first.notes if "packed weights" in note]
    assert note.endswith("every start packs them anew. OUTPACE_PACKED_GB=0 does not try.")


def test_the_folder_keeps_to_its_limit_and_loses_what_was_used_longest_ago(
    starts: Starts, tiny: Path, tiny_draft: Path, cycle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(tiny)
    (first,) = starts.files
    monkeypatch.setenv("OUTPACE_PACKED_GB", str(2.5 * first.stat().st_size / 1e9))
    starts(tiny_draft)
    (second,) = set(starts.files) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    starts(tiny)  # used now
    starts(tiny, "bfloat16")
    assert first in starts.files and second not in starts.files and len(starts.files) == 2
    monkeypatch.setenv("OUTPACE_PACKED_GB", "0.000001")
    starts(cycle)  # more than the limit
    assert len(starts.files) == 2
    assert store.clear_packed() == 2 and not starts.files


def test_nothing_is_kept_where_it_is_switched_off(starts: Starts, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPACE_PACKED_GB", "0")
    starts(tiny)
    assert not starts.folder.exists()
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("OUTPACE_PACKED_GB", wrong)
        with pytest.raises(ConfigError, match="OUTPACE_PACKED_GB"):
            starts(tiny)


def test_starts_at_once_leave_one_whole_file(starts: Starts, tiny: Path) -> None:
    """Locks are per open file, so threads stand for processes here."""
    together, found = threading.Barrier(3), []

    def start() -> None:
        together.wait()
        found.append(starts(tiny))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(same(found[0], other) for other in found[1:])
    count = starts.count
    assert same(found[0], starts(tiny)) and starts.count == count and len(starts.files) == 1
    assert not list(starts.folder.glob("*.part"))


def test_nobody_waits_for_another_that_writes(starts: Starts, tiny: Path) -> None:
    with store.locked(starts.folder / "lock"):
        assert not [note for note in starts(tiny).notes if "packed" in note]
    assert not starts.files
    (starts.folder / "left.weights.1.part").write_bytes(b"of a process that was killed")
    starts(tiny)
    assert len(starts.files) == 1 and not list(starts.folder.glob("*.part"))
