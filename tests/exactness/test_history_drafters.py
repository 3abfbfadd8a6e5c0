"""On the shipped stories model, drafters that live on history write plain decoding's text, with fewer forwards."""

from functools import lru_cache

import pytest

import outpace
from outpace.methods.base import Method
from outpace.methods.speculative.aded import Aded
from outpace.methods.speculative.alignment import Alignment
from outpace.methods.speculative.suffix import Suffix
from outpace.methods.speculative.token_recycling import TokenRecycling

# Copy-heavy: the model goes on in the manner of the text before.
PROMPT = "Tom has a red ball. Tom likes the red ball. Sam has a blue ball. Sam likes the blue ball. Tom has a red"
LAWS = {"greedy": {}, "sampled": {"temperature": 0.8, "top_k": 40}}


@lru_cache(maxsize=1)
def stories() -> "outpace.LanguageModel":
    return outpace.load("stories")


@lru_cache(maxsize=2)
def plain(law: str) -> list[int]:
    return stories().generate(PROMPT, max_tokens=48, seed=3, ignore_eos=True, **LAWS[law]).tokens


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    "method", [Suffix(), Suffix(is_tree=True), TokenRecycling(), Aded(), Alignment(threshold=1.0)], ids=str
)
def test_the_text_is_plain_decodings(method: Method, law: str) -> None:
    result = stories().generate(PROMPT, method=method, max_tokens=48, seed=3, ignore_eos=True, **LAWS[law])
    assert result.tokens == plain(law)
    if law == "greedy":
        assert result.usage.num_accepted / result.usage.num_steps > 1
