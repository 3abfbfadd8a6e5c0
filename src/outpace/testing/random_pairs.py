"""Small encoder-decoders with random weights, of the families that people use, as directories to certify methods on.

    python -m outpace.testing.random_pairs bart DIR
    outpace certify --model DIR --method input-guided
    outpace certify --model DIR --all -o draft=DIR/drafter

Their laws are sharp, so that drafts are kept and rejected at every temperature; what they write means nothing. They
know the letters of plain text alone. Beside each lies a drafter: the same model, its weights disturbed, so that it is
often right and often wrong.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path
from typing import Any

import torch

from outpace.errors import ConfigError, nearest

__all__ = ["DRAFTER", "FAMILIES", "main", "make_pair"]

DRAFTER = "drafter"  # folder in the model's
FAMILIES = ("marian", "t5", "bart", "m2m_100")
_SPECIAL = ("<pad>", "</s>", "<s>", "<unk>")
_LETTERS = string.ascii_letters + " .,!?'"
_SIZES = {"d_model": 16, "max_position_embeddings": 128}
_SIDES = {"attention_heads": 2, "ffn_dim": 32}
_LAYERS = {"encoder": 2, "decoder": 4}  # so that methods which leave layers out have some to leave
_SHARPNESS = 4.0  # spread of the logits
_DISTURBED = 0.1  # spread of what is added to a drafter's matrices, in spreads of their own
_SEED = 4  # under which every family writes many letters, and repeats itself now and then


def make_pair(family: str, directory: Path, seed: int = _SEED) -> Path:
    """Write a random model of a family, its tokenizer, its settings and a drafter, and return the directory.

    Args:
        family: one of `FAMILIES`.
        directory: where it goes; made if it is missing.
        seed: of the weights.

    Raises:
        ConfigError: an unknown family.
    """
    if family not in FAMILIES:
        raise ConfigError(f"There is no family {family!r} here.", nearest(family, FAMILIES, "family"))
    directory.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(family)
        _sharpen(model)
        for name, share in (("", 0.0), (DRAFTER, _DISTURBED)):
            _disturb(model, share)
            model.save_pretrained(directory / name)
            _write_tokenizer(directory / name)
    return directory


def _model(family: str) -> Any:
    import transformers

    theirs: Any = transformers
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "vocab_size": len(_SPECIAL) + len(_LETTERS)}
    ids["tie_word_embeddings"] = False  # tied ones make random weights repeat what they read
    if family == "t5":
        config = theirs.T5Config(
            **ids,
            decoder_start_token_id=0,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=_LAYERS["encoder"],
            num_decoder_layers=_LAYERS["decoder"],
            num_heads=2,
        )
        return theirs.T5ForConditionalGeneration(config)
    sides = {f"{side}_{name}": size for side in _LAYERS for name, size in _SIDES.items()}
    sides |= {f"{side}_layers": number for side, number in _LAYERS.items()}
    start = {"marian": 0, "bart": 2, "m2m_100": 1}[family]
    given = {**ids, **_SIZES, **sides, "decoder_start_token_id": start, "forced_eos_token_id": None}
    if family == "marian":
        return theirs.MarianMTModel(theirs.MarianConfig(**given))
    if family == "bart":
        return theirs.BartForConditionalGeneration(theirs.BartConfig(**given, forced_bos_token_id=None))
    return theirs.M2M100ForConditionalGeneration(theirs.M2M100Config(**given))


def _sharpen(model: Any) -> None:
    """Draw matrices wide enough for attention to choose, and scale the output matrix to logits of one spread.

    Special tokens but the end of the text are hardly ever likely.
    """
    model.eval()
    is_t5 = model.config.model_type == "t5"  # without places of its own, and with wider attention
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        std = (1.5 if is_t5 else 1.0) * weight.shape[1] ** -0.5
        if "relative" in name:
            std = 3.0
        elif "embed" in name or "shared" in name:
            std = 0.3 if is_t5 else 1.0
        elif "EncDec" in name:
            std /= 2
        torch.nn.init.normal_(weight, std=std)
    ids = torch.arange(len(_SPECIAL), len(_SPECIAL) + 24).unsqueeze(0)
    with torch.no_grad():
        spread = model(input_ids=ids, decoder_input_ids=ids.flip(1)).logits.std()
        head = model.get_output_embeddings().weight.mul_(_SHARPNESS / spread)
        head[[index for index, token in enumerate(_SPECIAL) if token != "</s>"]] = 0


def _disturb(model: Any, share: float) -> None:
    for weight in model.parameters():
        if weight.dim() == 2 and share:
            weight.data += share * weight.data.std() * torch.randn_like(weight)


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    space = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(" ")[0][0]
    letters = [space if letter == " " else letter for letter in _LETTERS]
    vocab = {token: index for index, token in enumerate([*_SPECIAL, *letters])}
    engine = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(list(_SPECIAL))
    engine.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    engine.save(str(directory / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(roles, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write a model."""
    parser = argparse.ArgumentParser(description="Write a small random encoder-decoder.")
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=_SEED)
    asked = parser.parse_args()
    print(make_pair(asked.family, asked.directory, asked.seed))


if __name__ == "__main__":
    main()
