"""Quantised checkpoints against the packages that write them; each test is skipped where its package is not installed.

Run them with, for example, `pip install --no-deps --target DIR compressed-tensors loguru accelerate psutil`
and DIR on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from quantised_layouts import MODULES, Made, Source, float8, write
from safetensors.torch import load_file
from torch import Tensor

from outpace.models.loading import load_model, open_tensors


def package(name: str) -> ModuleType:
    """A module of a package, without its warnings; skips the test where it is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            pytest.skip(f"{name} is not installed")


def check_values(directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Every matrix, and its codes where they are kept, has the values that the package gave it, bit for bit."""
    files = open_tensors(directory)
    dense = load_file(directory / "dense" / "model.safetensors")
    for module, shape in MODULES.items():
        name = f"{module}.weight"
        expected = dense[name].to(dtype)
        assert torch.equal(files.read(name, shape).to(dtype), expected), name
        codes = files.read_quantised(name, shape)
        assert codes is None or dtype == torch.float32 or torch.equal(codes.dense(dtype), expected), name


def their_logits(directory: Path, **keys: Any) -> Tensor:
    """What transformers makes of a directory."""
    hf = package("transformers")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **keys)
        found: Tensor = model(torch.arange(12)[None]).logits
    return found


def our_logits(directory: Path) -> Tensor:
    model, ids = load_model(directory, "float32"), torch.arange(12)[None]
    return model.score(ids, ids, None, model.new_cache(1, 12)).logits


COMPRESSED = {
    "packed-4": ("pack-quantized", {"num_bits": 4, "group_size": 32, "strategy": "group"}),
    "packed-4-zeros": ("pack-quantized", {"num_bits": 4, "group_size": 16, "strategy": "group", "symmetric": False}),
    "packed-3-zeros": ("pack-quantized", {"num_bits": 3, "strategy": "channel", "symmetric": False}),
    "packed-5": ("pack-quantized", {"num_bits": 5, "strategy": "channel"}),
    "packed-8": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int-channel": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int-tensor": ("int-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": False}),
    "int-group": ("int-quantized", {"num_bits": 8, "group_size": 32, "strategy": "group", "symmetric": False}),
    "float-tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "float-channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "float-block": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block",
                                        "block_structure": [16, 32]}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", COMPRESSED)
def test_compressed_tensors(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    ct, compressors = package("compressed_tensors.quantization"), package("compressed_tensors.compressors")
    form, weights = COMPRESSED[case]
    args = ct.QuantizationArgs(**weights)
    scheme = ct.QuantizationScheme(targets=["Linear"], weights=args, format=form)
    compressor = compressors.BaseCompressor.get_value_from_registry(form)
    random = torch.Generator().manual_seed(3)

    def make(module: str, rows: int, columns: int) -> Made:
        del module
        weight = torch.randn(rows, columns, generator=random).to(dtype)
        high, wide = args.block_structure or (1, args.group_size or columns)
        high = rows if args.strategy == "tensor" else high
        blocks = weight.view(rows // high, high, columns // wide, wide)
        low, top = blocks.amin((1, 3)), blocks.amax((1, 3))
        scale, zero = ct.utils.calculate_qparams(low, top, args)
        flat = {"weight": weight, "weight_scale": scale.to(dtype), "weight_zero_point": zero}
        if args.strategy == "tensor":
            flat |= {name: flat[name].flatten() for name in ("weight_scale", "weight_zero_point")}
        stored = compressor.compress(flat, scheme)
        return Made(stored, compressor.decompress(stored, scheme)["weight"])

    settings = ct.QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, ignore=["lm_head"], quantization_status="compressed"
    )
    directory = write(tmp_path, settings.model_dump(mode="json"), make)
    check_values(directory, dtype)
    if dtype == torch.float32:
        hf = package("transformers")
        theirs = their_logits(directory, quantization_config=hf.CompressedTensorsConfig(dequantize=True))
        assert torch.allclose(our_logits(directory), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("bits", "group", "is_first_form", "is_permuted"),
    [(4, 32, True, False), (4, 32, False, True), (8, 64, True, True), (8, -1, False, False), (3, 32, True, False),
     (2, 16, True, False)],
)  # fmt: skip
def test_gptqmodel(bits: int, group: int, is_first_form: bool, is_permuted: bool, tmp_path: Path) -> None:
    torch_linear, model = package("gptqmodel.nn_modules.qlinear.torch"), package("gptqmodel.utils.model")
    source = Source(bits=bits, group=max(group, 0), is_permuted=is_permuted)

    def make(module: str, rows: int, columns: int) -> Made | None:
        if columns % max(group, 1):
            return None
        source.draw(rows, columns)
        linear = torch.nn.Linear(columns, rows, bias=False)
        linear.weight.data = source.dense()
        made = torch_linear.TorchLinear(bits=bits, group_size=group, sym=False, desc_act=is_permuted,
                                        in_features=columns, out_features=rows)  # fmt: skip
        made.pack_original(linear, source.scale.float(), source.zero, source.index.to(torch.int32))
        made.optimized = True  # nothing to compile
        made.post_init()
        made.eval()
        values = made.dequantize_weight().t()
        assert torch.equal(values, source.dense().half())
        if is_first_form:
            model.convert_gptq_v2_to_v1_format_module(made, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        stored = {name: getattr(made, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
        return Made(stored, values)

    form = "gptq" if is_first_form else "gptq_v2"
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": form}
    check_values(write(tmp_path, settings, make), torch.float16)


def test_awq(tmp_path: Path) -> None:
    torch_awq = package("gptqmodel.nn_modules.qlinear.torch_awq")
    packing = package("gptqmodel.quantization.awq.utils.packing_utils")
    source = Source()

    def make(module: str, rows: int, columns: int) -> Made:
        source.draw(rows, columns)
        linear = torch.nn.Linear(columns, rows, bias=False)
        linear.weight.data = source.dense()
        made = torch_awq.AwqTorchLinear(bits=4, group_size=32, sym=False, desc_act=False, in_features=columns,
                                        out_features=rows)  # fmt: skip
        made.pack(linear, source.scale, source.zero)
        values = packing.dequantize_gemm(made.qweight, made.qzeros, made.scales, 4, 32).t()
        assert torch.equal(values, source.dense().half())
        return Made({name: getattr(made, name) for name in ("qweight", "qzeros", "scales")}, values)

    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    check_values(write(tmp_path, settings, make), torch.float16)


def test_float8_as_transformers_decodes_it(tmp_path: Path) -> None:
    package("accelerate")  # transformers asks for it
    hf = package("transformers")
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head"]}
    directory = write(
        tmp_path, settings, lambda module, rows, columns: float8(rows, columns, (32, 32), "weight_scale_inv")
    )
    config = json.loads((directory / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "fp8"
    theirs = their_logits(directory, quantization_config=hf.FineGrainedFP8Config(dequantize=True))
    assert torch.allclose(our_logits(directory), theirs, atol=1e-4)
