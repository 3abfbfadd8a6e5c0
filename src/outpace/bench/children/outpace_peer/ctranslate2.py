"""CTranslate2 on a Marian checkpoint: greedy or with beams, many texts at once."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

from .base import Failure, Request

__all__ = ["CTranslate2"]


class CTranslate2:
    """One `Translator`, whose words are ids: token i is called "t<i>"."""

    def __init__(self) -> None:
        self.library: Any = None
        self.translator: Any = None

    def versions(self) -> dict[str, str]:
        """Import ctranslate2 and return its version."""
        try:
            self.library = importlib.import_module("ctranslate2")
        except ImportError as error:
            raise Failure(f"ctranslate2 cannot be imported ({error}).") from None
        return {"ctranslate2": self.library.__version__}

    def convert(self, source: str, target: str, precision: str) -> None:
        """Write a Marian checkpoint in float32; other precisions are made of it as it is opened.

        No tokenizer is asked for, and the first token is embedded like every other: the converter's own way for Marian
        drops the last word of the vocabulary and begins with zeros.
        """
        del precision
        self.versions()
        converters = importlib.import_module("ctranslate2.converters.transformers")
        transformers = importlib.import_module("transformers")
        model = transformers.MarianMTModel.from_pretrained(source, dtype="float32")
        config, loader = model.config, converters.MarianMTLoader()
        config.normalize_before = config.normalize_embedding = False
        spec = converters.BartLoader.get_model_spec(loader, model)
        spec.decoder.start_from_zero_embedding = False
        words = [f"t{index}" for index in range(config.vocab_size)]
        spec.register_source_vocabulary(words)
        spec.register_target_vocabulary(words)
        spec.config.eos_token = spec.config.bos_token = f"t{config.eos_token_id}"
        spec.config.unk_token, spec.config.decoder_start_token = "t1", f"t{config.decoder_start_token_id}"
        spec.validate()
        Path(target).mkdir(parents=True, exist_ok=True)
        spec.save(target)

    def open(self, job: Any) -> None:
        """Load a model in a precision."""
        self.translator = self.library.Translator(
            job.directory, device="cpu", compute_type=job.precision, intra_threads=job.threads, inter_threads=1
        )

    def run(self, task: Request) -> dict[str, Any]:
        """Refuse: texts are asked for by `translate`."""
        raise Failure("CTranslate2 is asked for translations.")

    def translate(self, sources: list[list[int]], max_tokens: int, beams: int) -> dict[str, Any]:
        """Return the tokens of each source's text, without the end, and the seconds it took."""
        words = [[f"t{token}" for token in source] for source in sources]
        began = time.perf_counter()
        found = self.translator.translate_batch(
            words, beam_size=beams, max_decoding_length=max_tokens, max_batch_size=0, batch_type="examples"
        )
        seconds = time.perf_counter() - began
        return {"tokens": [[int(word[1:]) for word in one.hypotheses[0]] for one in found], "seconds": seconds}
