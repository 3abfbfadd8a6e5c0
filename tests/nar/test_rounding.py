"""Models stored as bytes with a scale per row: what is read back, by our decoders and by the one-pass family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from outpace.errors import ModelError
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.models.nar.files import config_of, read_nar
from outpace.models.rounded import SCALE
from outpace.models.tensors import TensorFiles, check_stored
from outpace.train.rounding import _round, round_model

CONFIG = CtcConfig(vocab_size=300, width=32, heads=2, ffn=160, encoder_layers=1, decoder_layers=1, factor=2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = Ctc(CONFIG)
    save_file(
        {name: weight.to(torch.bfloat16) for name, weight in net.state_dict().items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(config_of(net)))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"ä": 1}}}, indent=2))
    (tmp_path / "card.md").write_text("# tiny\n\n- parameters: 5 (embeddings tied), stored in bfloat16\n")
    return tmp_path


def test_a_rounded_model_is_the_model(model: Path) -> None:
    before = read_nar(model).state_dict()
    sizes = round_model(model)
    after = read_nar(model).state_dict()
    assert sizes[1] < 0.65 * sizes[0] and "bytes with a scale" in (model / "card.md").read_text()
    assert json.loads((model / "tokenizer.json").read_text(encoding="utf-8")) == {"model": {"vocab": {"ä": 1}}}
    for name, weight in before.items():
        step = weight.abs().amax(-1, keepdim=True) / 254 if weight.dim() == 2 else torch.zeros(1)
        assert bool(((after[name] - weight).abs() <= step * (1 + 1e-4)).all()), name
    assert round_model(model)[0] == sizes[1]
    again = read_nar(model).state_dict()
    assert all(torch.allclose(again[name], weight, rtol=1e-6, atol=0) for name, weight in after.items())


def test_files_give_floats_where_bytes_lie(model: Path) -> None:
    round_model(model)
    stored, files = load_file(model / "model.safetensors"), TensorFiles([model / "model.safetensors"])
    name = "embed_tokens.weight"
    wanted = stored[name].float() * stored[name + SCALE][:, None]
    assert stored[name].dtype == torch.int8 and torch.equal(files.read(name, (301, 32)), wanted)
    assert {name, name + SCALE}.isdisjoint(files.unused()) and files.stored_dtype() == "bfloat16"
    assert files.num_values() == sum(weight.numel() for weight in Ctc(CONFIG).parameters())
    with pytest.raises(ModelError, match="shape"):
        files.read(name, (300, 32))
    with pytest.raises(ModelError, match="quantised numbers"):  # transformers would read the bytes as they are
        check_stored([model / "model.safetensors"], {})


def test_bytes_without_scales_are_refused(model: Path) -> None:
    round_model(model)
    stored = load_file(model / "model.safetensors")
    del stored["embed_tokens.weight" + SCALE]
    save_file(stored, model / "model.safetensors")
    with pytest.raises(ModelError, match="quantised numbers"):
        TensorFiles([model / "model.safetensors"]).read("embed_tokens.weight", (301, 32))


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        round_model(tmp_path)
    with pytest.raises(Exception, match="One directory is needed"):
        _round([])
