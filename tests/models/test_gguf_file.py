"""The head of a GGUF file: read as the `gguf` package reads it, and refused in one sentence where it is damaged."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from outpace.errors import ModelError
from outpace.text.gguf_file import BLOCKS, find_gguf, is_gguf, read_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every type of value, and two tensors."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind, value in (("uint8", 200), ("int8", -3), ("uint16", 60000), ("int16", -300), ("uint32", 4_000_000_000)):
        getattr(writer, f"add_{kind}")(f"one.{kind}", value)
    for kind, value in (("int32", -70000), ("float32", 0.5), ("uint64", 2**60), ("int64", -(2**60)), ("float64", 0.1)):
        getattr(writer, f"add_{kind}")(f"one.{kind}", value)
    writer.add_bool("one.bool", True)
    writer.add_string("one.text", "日本 text")
    writer.add_array("many.texts", ["a", "", "ü"])
    writer.add_array("many.whole", [1, -2, 3])
    writer.add_array("many.fractions", [0.5, -1.5])
    writer.add_array("many.flags", [True, False])
    numbers = np.arange(96, dtype=np.float32).reshape(3, 32)
    writer.add_tensor("plain", numbers)
    packed = gguf.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_head_is_read_as_the_gguf_package_reads_it(file: Path) -> None:
    found, theirs = read_gguf(file), gguf.GGUFReader(file)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            value = found.metadata[key]
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents(), key
    assert len(found.metadata) == len(theirs.fields) - 3
    for tensor in theirs.tensors:
        stored = found.tensors[tensor.name]
        assert (stored.offset, stored.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert (stored.kind, list(stored.shape)) == (tensor.tensor_type.name, tensor.shape.tolist()[::-1])
    assert len(found.tensors) == 2


def test_sizes_of_blocks_are_those_of_the_gguf_package() -> None:
    for number, (name, weights, size) in BLOCKS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (weights, size))


def test_values_are_asked_for_by_kind(file: Path) -> None:
    found = read_gguf(file)
    assert found.get("one.int32", float) == -70000.0
    assert found.get("none", str, "x") == "x"
    for key, kind in (("one.bool", int), ("one.int32", bool), ("one.text", float), ("many.texts", np.ndarray)):
        with pytest.raises(ModelError, match=key):
            found.get(key, kind)


def test_files_are_told_by_name_or_by_their_first_bytes(file: Path, tmp_path: Path) -> None:
    (tmp_path / "sha256-abc").write_bytes(file.read_bytes())
    (tmp_path / "text").write_text("GGUX")
    assert is_gguf(tmp_path / "sha256-abc")
    assert not is_gguf(tmp_path / "text")
    assert not is_gguf(tmp_path)
    assert find_gguf(tmp_path) is None  # in folders names tell
    assert find_gguf(tmp_path / "gone.gguf") is None


def test_a_changed_file_is_read_anew(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(file.read_bytes())
    assert read_gguf(path).metadata is read_gguf(path).metadata
    path.write_bytes(file.read_bytes().replace(b"one.text", b"two.text") + bytes(32))
    assert "two.text" in read_gguf(path).metadata


def patched(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert data.count(old) == 1
        return data.replace(old, new)

    return change


def at(offset: int, form: str, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + struct.pack(form, value) + data[offset + struct.calcsize(form) :]


def entry(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


PLAIN, PACKED = entry(b"plain", [32, 3], 0, 0), entry(b"packed", [32, 3], 8, 384)
KEY = struct.pack("<Q", 8) + b"one.text" + struct.pack("<I", 8)
LIST = struct.pack("<Q", 10) + b"many.whole" + struct.pack("<I", 9)


def text_key(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def with_alignment(value: bytes, kind: int = 4) -> Callable[[bytes], bytes]:
    """One key more."""
    return lambda data: data[:16] + struct.pack("<Q", 18) + text_key(b"general.alignment", kind, value) + data[24:]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "too short"),
    "only a magic": (lambda data: data[:4], "too short"),
    "another magic": (at(0, "<I", 7), "is not a GGUF file"),
    "version 1": (at(4, "<I", 1), "version 1"),
    "version 99": (at(4, "<I", 99), "version 99"),
    "big endian": (at(4, ">I", 3), "big-endian"),
    "tensors beyond count": (at(8, "<Q", 2**62), "promises 4611686018427387904 tensors"),
    "keys beyond count": (at(16, "<Q", 2**62), "promises 4611686018427387904 keys"),
    "more tensors than there are": (at(8, "<Q", 3), "dimensions"),
    "a key of gigabytes": (at(24, "<Q", 2**40), "ends in its own head"),
    "a text of gigabytes": (patched(KEY, KEY + struct.pack("<Q", 2**50)), "ends in its own head"),
    "a list of gigabytes": (
        patched(LIST + struct.pack("<IQ", 5, 3), LIST + struct.pack("<IQ", 5, 2**61)),
        "entries of many.whole",
    ),
    "a list of endless texts": (
        patched(LIST + struct.pack("<IQ", 5, 3), LIST + struct.pack("<IQ", 8, 2**61)),
        "entries of many.whole",
    ),
    "a list of lists": (patched(LIST + struct.pack("<IQ", 5, 3), LIST + struct.pack("<IQ", 9, 3)), "a list of type 9"),
    "a value of no type": (patched(KEY, KEY[:-4] + struct.pack("<I", 13)), "a value of type 13"),
    "a key twice": (patched(b"one.uint16", b"one.uint32"), "states one.uint32 twice"),
    "text that is none": (patched("日本".encode(), b"\xff" * 6), "no UTF-8"),
    "texts that are none": (patched("ü".encode(), b"\xff\xff"), "no UTF-8"),
    "alignment 0": (with_alignment(struct.pack("<I", 0)), "alignment of 0"),
    "alignment 48": (with_alignment(struct.pack("<I", 48)), "alignment of 48"),
    "alignment as text": (with_alignment(struct.pack("<Q", 2) + b"32", 8), "alignment of '32'"),
    "no dimensions": (patched(PLAIN, entry(b"plain", [], 0, 0)), "0 dimensions"),
    "five dimensions": (patched(PLAIN, entry(b"plain", [2, 2, 2, 2, 2], 0, 0)), "5 dimensions"),
    "a dimension of 0": (patched(PLAIN, entry(b"plain", [32, 0], 0, 0)), "shape"),
    "dimensions that overflow": (patched(PLAIN, entry(b"plain", [2**63, 2**63], 0, 0)), "shape"),
    "a type that is not known": (patched(PLAIN, entry(b"plain", [32, 3], 77, 0)), "type 77"),
    "a type that is not read": (patched(PLAIN, entry(b"plain", [32, 3], 17, 0)), "IQ2_XS"),
    "a type's name after the letters": (patched(PLAIN, entry(b"plain", [32, 3], 21, 0)), "IQ3_S"),
    "rows that no blocks fill": (patched(PACKED, entry(b"packed", [31, 3], 8, 384)), "do not fill rows of 31"),
    "a tensor outside": (patched(PACKED, entry(b"packed", [32, 3], 8, 2**40)), "truncated"),
    "a tensor off its place": (patched(PACKED, entry(b"packed", [32, 3], 8, 385)), "wrongly"),
    "a tensor upon another": (patched(PACKED, entry(b"packed", [32, 3], 8, 352)), "lays packed over"),
    "a tensor twice": (patched(PACKED, entry(b"plain", [32, 3], 8, 384)), "holds plain twice"),
    "the last byte missing": (lambda data: data[: -(512 - 384 - 3 * 34) - 1], "truncated"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_head_is_refused_in_a_sentence(case: str, file: Path, tmp_path: Path) -> None:
    change, words = DAMAGE[case]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(change(file.read_bytes()))
    with pytest.raises(ModelError, match=words) as caught:
        read_gguf(path)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_no_damage_ends_in_anything_else(file: Path, tmp_path: Path) -> None:
    """Cut anywhere, or with bytes changed at random, a file is read or refused."""
    data, source = file.read_bytes(), np.random.default_rng(3)
    head = data.index(PACKED) + len(PACKED)
    versions = [data[:cut] for cut in range(0, head, 7)]
    for _ in range(300):
        changed = bytearray(data)
        for place in source.integers(0, head, source.integers(1, 4)):
            changed[place] = source.integers(256)
        versions.append(bytes(changed))
    refused = 0
    for number, version in enumerate(versions):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(version)
        try:
            read_gguf(path)
        except ModelError:
            refused += 1
    assert refused > len(versions) // 2


def test_a_file_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_gguf(tmp_path / "gone.gguf")
