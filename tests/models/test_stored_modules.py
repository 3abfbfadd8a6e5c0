"""Multi-token modules inside checkpoints: every layout is found, read, and drafts as the whole prefix computes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mtp_layouts import CONFIGS, Written, write
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

import outpace
from outpace.cli import main
from outpace.errors import ModelError
from outpace.heads.model import HeadModel
from outpace.heads.stored import find_layout, has_modules, open_stored
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.mtp import Mtp
from outpace.models.hf import wrap
from outpace.models.loading import load_model
from outpace.testing.world import make_rows, make_run
from outpace.types import Adapter

TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7, 1, 8], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5]]
NATIVE = ("mimo", "generic")
WANTED = {"deepseek": (False, True), "glm": (False, True), "mimo": (True, True)}  # hidden first, zero first


def opened(written: Written, kind: str) -> tuple[Adapter, HeadModel]:
    """Return the target of a checkpoint and its modules."""
    target = load_model(written.path, dtype="float64") if kind in NATIVE else wrap(written.main)
    return target, open_stored(written.path, target)


@torch.no_grad()
def chain(written: Written, head: HeadModel, text: list[int], length: int) -> list[int]:
    """Return a greedy chain of drafts, each with the whole prefix passed again by transformers' own forward."""
    conventions = head.net.modules_read
    given = conventions.hidden_first, conventions.zero_first
    states = written.main.model(torch.tensor([text[:-1]]), use_cache=False).last_hidden_state
    tokens, drafts, count = list(text[1:]), [], len(written.ones)
    for step in range(length):
        shown = tokens if count == 1 else tokens[step:]
        out = written.state(step % count, torch.tensor([shown]), states, *given)
        drafts.append(int(written.main.lm_head(out[0, -1]).argmax()))
        tokens.append(drafts[-1])
        states = torch.cat([states, out[:, -1:]], 1) if count == 1 else out
    return drafts


def drafted(target: Adapter, head: HeadModel, method: Mtp) -> list[tuple[list[int], list[int]]]:
    """Return each text that was drafted on, and its drafts, until all rows have ten tokens more."""
    found = []
    run = make_run(method, target=target, models={"draft": head}, capacity=60)
    run.join(make_rows(TEXTS, max_tokens=10))
    while run.rows:
        texts = [list(row.tokens) for row in run.rows]
        run.step()
        proposal = run.last.proposal
        found += [(texts[row], proposal.tokens[row, :n].tolist()) for row, n in enumerate(proposal.length) if n]
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_drafts_are_those_of_the_whole_prefix(kind: str, tmp_path: Path) -> None:
    written = write(kind, tmp_path)
    target, head = opened(written, kind)
    modules = head.net.modules_read
    assert (modules.hidden_first, modules.zero_first) == WANTED.get(kind, (False, False))
    assert modules.parts[0].head is None and modules.parts[0].embed is None  # the files repeat the target's
    found = drafted(target, head, Mtp(draft_len=3, is_adaptive=False))
    assert len(found) > 5
    for text, drafts in found:
        assert drafts == chain(written, head, text, len(drafts))


@pytest.mark.parametrize("kind", ["mimo", "glm"])
def test_two_modules_draft_one_after_the_other(kind: str, tmp_path: Path) -> None:
    written = write(kind, tmp_path, count=2)
    target, head = opened(written, kind)
    found = drafted(target, head, Mtp(draft_len=2, is_adaptive=False))
    assert any(len(drafts) == 2 for _, drafts in found)
    for text, drafts in found:
        assert drafts == chain(written, head, text, len(drafts))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "count"), [("deepseek", 1), ("glm", 2)])
def test_states_are_those_of_transformers_own_modules(kind: str, count: int, tmp_path: Path) -> None:
    from transformers.modeling_layers import MtpModel

    written = write(kind, tmp_path, count)
    main = written.main
    main.config.name_or_path, main.config.num_mtp_layers = str(tmp_path), count
    main.config.dtype = torch.float64
    main._keys_to_ignore_on_load_unexpected = [r"model\.layers\.[23]\..*"]  # those of theirs name the released depths
    theirs = MtpModel.from_pretrained(main)
    theirs.set_experts_implementation("eager")
    modules = open_stored(tmp_path, wrap(main)).net.modules_read
    text = torch.tensor([TEXTS[2]])
    states = main.model(text[:, :-1], use_cache=False).last_hidden_state
    place = torch.arange(1, text.shape[1]).unsqueeze(0)
    for k in range(count):
        tokens = text[:, 1 + k :]
        size = tokens.shape[1]
        states = states[:, :size]
        want = theirs.forward_layer(k, states, place[:, k:], None, input_ids=tokens)
        part = modules.parts[k]
        inputs = type(modules)(()).inputs(part, main.get_input_embeddings()(tokens), states, place[:, :size])
        got = one_pass(part.body, inputs)
        # Rotations are by distance, so that theirs from place 1 + k on are ours from 0 on, but for rounding.
        torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-6)
        states = want


def one_pass(body: Adapter, inputs: Tensor) -> Tensor:
    from outpace.types import Outputs

    size = inputs.shape[1]
    place, none = torch.arange(size).unsqueeze(0), torch.zeros(1, size, dtype=torch.int64)
    last = body.score(none, place, None, body.new_cache(1, size + 1), None, Outputs(has_last=True), inputs).last
    assert last is not None
    return last


@pytest.mark.parametrize("kind", ["deepseek", "mimo"])
@pytest.mark.parametrize("shape", [{"budget": 7}, {"branches": (2, 2, 1)}, {"draft_len": 5}])
def test_the_text_is_plain_decodings(kind: str, shape: dict, tmp_path: Path) -> None:
    target, head = opened(write(kind, tmp_path), kind)

    def written(method: object, **models: Adapter) -> list[list[int]]:
        run = make_run(method, target=target, models=models, capacity=60)
        rows = make_rows(TEXTS, max_tokens=12)
        run.join(rows)
        while run.rows:
            run.step()
        return [row.written for row in rows]

    assert written(Mtp(**shape), draft=head) == written(Autoregressive())


def test_a_head_and_embeddings_of_their_own_are_kept(tmp_path: Path) -> None:
    written = write("deepseek", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name in ("model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight"):
        tensors[name] = tensors[name] + 1
    save_file(tensors, path)
    part = open_stored(tmp_path, wrap(written.main)).net.modules_read.parts[0]
    assert part.head is not None and part.embed is not None
    states = torch.randn(2, 32, dtype=torch.float64)
    torch.testing.assert_close(part.head(states), states @ tensors["model.layers.2.shared_head.head.weight"].T)
    torch.testing.assert_close(part.embed(torch.tensor([5])), tensors["model.layers.2.embed_tokens.weight"][[5]])


def test_the_command_needs_no_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("mimo", tmp_path, dtype=torch.float32)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    lm = outpace.load(str(tmp_path), dtype="float32", is_compiled=False)
    given = {"max_tokens": 12, "ignore_eos": True}
    plain, drafts = lm.generate("w3 w1 w4", **given), lm.generate("w3 w1 w4", method="mtp", **given)
    assert plain.tokens == drafts.tokens and drafts.usage.num_proposed > 0
    arguments = ["generate", "--model", str(tmp_path), "--method", "mtp", "--max-tokens", "8", "w3 w1 w4"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == lm.generate("w3 w1 w4", max_tokens=8).text.strip()


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    target = load_model(write("mimo", tmp_path).path, dtype="float64")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"model.mtp_layers.0.self_attn.extra.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"extra\.weight has no place in a multi-token module"):
        open_stored(tmp_path, target)
    save_file(tensors | {"model.mtp_layers.0.input_proj.weight": torch.zeros(32, 32)}, path)
    with pytest.raises(ModelError, match=r"input_proj.* has shape \[32, 32\]"):
        open_stored(tmp_path, target)
    save_file({name: tensor for name, tensor in tensors.items() if "mtp" not in name}, path)
    assert not has_modules(tmp_path)
    with pytest.raises(ModelError, match="hold no multi-token modules"):
        open_stored(tmp_path, target)


def test_layouts_are_told_by_names() -> None:
    names = ["enorm.weight", "hnorm.weight", "eh_proj.weight", "final_layernorm.weight", "self_attn.q_proj.weight"]
    config = {"num_hidden_layers": 4}
    for home, count in (("model.layers.4.", 1), ("model.mtp.layers.0.", 1), ("model.layers.5.", 0)):
        layout = find_layout([home + name for name in names], config)
        assert (0 if layout is None else layout.count) == count
    flipped = find_layout(["mtp.layers.0." + n for n in names], {**config, "mtp_hidden_states_first": True})
    assert json.dumps([flipped.hidden_first, flipped.zero_first]) == "[true, true]"
