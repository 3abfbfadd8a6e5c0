"""What certificates are made on: texts that most models go on copying, and the laws that they are written under."""

from __future__ import annotations

import importlib.util
from typing import Any

from outpace.api.engine import LanguageModel
from outpace.errors import OutpaceError

__all__ = ["CHATS", "PROMPTS", "SEARCHES", "SETTINGS", "SOURCES", "own_prompts"]

PROMPTS = (
    "Once upon a time, there was a little girl named Lily. Lily loved to play in the park. One day, Lily",
    "The cat sat on the mat. " * 6 + "The cat",
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\ndef mul(a, b):\n",
    "One day, Tom",
    "Question: Tom has 3 apples and buys 4 apples. How many apples does Tom have? Answer: Tom has 3 + 4 = 7 apples.",
    "import os\nimport sys\n\n\nclass Node:\n    def __init__(self, name):\n        self.name = name\n",
    "I am happy. You are happy. We are happy. " * 4 + "I am",
    "Ben and Mia went to the beach. They saw a big, big",
)
CHATS = (  # what is asked of a model that chats, and how its answer begins: copies of what it has seen
    (
        "Write the numbers from one to ten, three times.",
        "one two three four five six seven eight nine ten\none two three",
    ),
    (
        "Copy this text word for word: Tom has a red ball. Mia has a blue ball. Ben has a green ball.",
        "Tom has a red ball. Mia",
    ),
    (
        "Copy this code:\ndef add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n",
        "def add(a, b):\n    return a + b\n\n\ndef",
    ),
)
SOURCES = (  # what an encoder-decoder reads: German first, as what ships translates from it
    "Tom hat ein Auto. Tom hat ein Haus. Tom hat einen Hund. Tom hat eine Katze. Tom hat ein Boot.",
    "Ich bin müde. Du bist müde. Er ist müde. Sie ist müde. Wir sind müde. Ihr seid müde.",
    "Ein Mann fährt Fahrrad. Eine Frau fährt Fahrrad. Ein Kind fährt Fahrrad.",
    "Hallo!",
    "She go to school every day. He go to school every day. They goes to school every day.",
    "Ich weiß nicht, was ich sagen soll, und ich weiß nicht, was ich tun soll.",
    "The cat sat on the mat. The dog sat on the mat. The cat sat on the dog.",
    "Wo ist das Buch? Wo ist der Schlüssel? Wo ist die Tasche? Wo ist das Buch?",
)
_READ = 40  # tokens of a text that is read again
# In order of what they tell. Several laws take turns, the one under which most drafts are kept first: under a high
# temperature and strong penalties few are, on a model that copies little.
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "greedy": ({},),
    "temperature 0.7": ({"temperature": 0.7},),
    "penalties": (
        {"temperature": 0.7, "repetition_penalty": 1.02, "presence_penalty": 0.1, "frequency_penalty": 0.05},
        {"temperature": 0.7, "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.05},
    ),
    "cuts": ({"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01},),
    "temperature > 1": ({"temperature": 1.1}, {"temperature": 1.3}),
}
if importlib.util.find_spec("llguidance") is not None:  # constraints are an extra
    # Complete everywhere, so that a text may end at any token and stops keep their meaning.
    SETTINGS["grammar"] = ({"temperature": 0.7, "regex": r"[A-Za-z ,.!?'\"\n]*"},)

# A search draws nothing: it is certified under laws without temperature.
SEARCHES: dict[str, tuple[dict[str, Any], ...]] = {
    name: tuple({key: value for key, value in law.items() if key != "temperature"} for law in SETTINGS[name])
    for name in ("greedy", "penalties", "grammar")
    if name in SETTINGS
}


def own_prompts(lm: LanguageModel) -> list[list[int]]:
    """Return the prompts that are used where none are given: `PROMPTS`, and of a model that chats, `CHATS` as well.

    An encoder-decoder reads `SOURCES`, and what it wrote of some of them, which it is likelier to copy.
    An answer is begun for the model, so that it copies; plain texts beside it leave enough drafts to reject.
    """
    tokenizer, chats = lm.tokenizer, list[list[int]]()
    if lm.target.capabilities.is_encoder_decoder:
        sources = [lm.encode(text) for text in SOURCES]
        read = lm.generate(sources[:3], max_tokens=_READ, ignore_eos=True)
        return [lm.encode(result.text) for result in read if result.text.strip()] + sources
    if tokenizer is not None and tokenizer.has_chat:
        try:
            for asked, begun in CHATS:
                text = tokenizer.render_chat([{"role": "user", "content": asked}]) + begun
                chats.append(tokenizer.encode(text, is_special=False))
        except OutpaceError:  # a template that wants other messages
            chats = []
    plain = [PROMPTS[i] for i in (1, 0, 4)] if chats else PROMPTS
    return [lm.encode(text) for text in plain] + chats
