"""Graphs of sub-problems: read from text and JSON, written in as few batches as there are depths, each as if alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace.api.engine import LanguageModel
from outpace.api.graph import Node, depths, read_graph, write_graph
from outpace.cli import main
from outpace.errors import ConfigError

TEXT = """
# a story
hero: Once upon a time there was a
place: They went to the
end [hard]: The{hero} and the{place}\\nThen
last: In the end,{end}
"""


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    load = outpace.load
    return {name: load(at, dtype="float64", is_compiled=False) for name, at in
            (("easy", "stories-draft"), ("hard", "stories"))}  # fmt: skip


def test_text_and_json_say_the_same() -> None:
    nodes = read_graph(TEXT)
    assert nodes == [
        Node("hero", "Once upon a time there was a"),
        Node("place", "They went to the"),
        Node("end", "The{hero} and the{place}\nThen", "hard"),
        Node("last", "In the end,{end}"),
    ]
    rows = [{"name": one.name, "prompt": one.prompt, "level": one.level} for one in nodes]
    assert read_graph(json.dumps(rows)) == nodes
    assert [node.parents for node in nodes] == [(), (), ("hero", "place"), ("end",)]
    assert depths(nodes) == [0, 0, 1, 2]
    assert Node("a", "{b} {b}", after=("c", "b")).parents == ("b", "c")


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.9, "seed": 3}, {"method": "prompt-lookup"}])
def test_each_node_is_what_it_is_alone_and_depths_are_batches(
    models: dict[str, LanguageModel], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    plain = LanguageModel.generate

    def counted(lm: LanguageModel, prompt: Any, **arguments: Any) -> Any:
        batches.append((lm.name, len(prompt)))
        return plain(lm, prompt, **arguments)

    nodes = read_graph(TEXT + "also: They ran to a\n")
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModel, "generate", counted)
        found = write_graph(models, nodes, max_tokens=8, **asked)
    assert batches == [("stories-draft", 3), ("stories", 1), ("stories-draft", 1)]
    texts: dict[str, str] = {}
    for node in nodes:  # one after the other, each prompt put together by hand
        prompt = node.prompt
        for name, text in texts.items():
            prompt = prompt.replace("{" + name + "}", text)
        one = plain(models[node.level or "easy"], prompt, max_tokens=8, **asked)
        texts[node.name] = one.text
        [written] = [written for written in found if written.name == node.name]
        assert (written.prompt, written.text, list(written.tokens)) == (prompt, one.text, one.tokens)
        assert written.model == models[node.level or "easy"].name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no node"),
        ("a line", "Line 1 of the graph is no node"),
        ("a: x\na: y", "Two nodes are named 'a'"),
        ("a: {b}", "'a' waits for 'b'"),
        ("a: {b}\nb: {c}\nc: {b}", "wait for each other: a, b, c"),
        ("[{]", "no list of nodes"),
        ('[{"name": "a"}]', "no list of nodes"),
        ('[{"name": "a", "prompt": 3}]', "no list of nodes"),
        ('[{"name": "a b", "prompt": "x"}]', "no list of nodes"),
    ],
)
def test_what_is_no_graph_is_told(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_graph(text)


def test_levels_need_models(
    models: dict[str, LanguageModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="'end' is 'hard', which no model is for"):
        write_graph({"easy": models["easy"]}, read_graph(TEXT))
    with pytest.raises(ConfigError, match="No model"):
        write_graph({}, read_graph(TEXT))
    file = tmp_path / "story.graph"
    file.write_text(TEXT)
    assert main(["graph", str(file), "--model", "a", "--model", "b"]) == 2
    assert "each for a level of its own" in capsys.readouterr().err
    assert main(["graph", str(file), "--model", "easy=stories-draft", "--model", "hard=stories", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == ["hero", "place", "end", "last"]
    assert lines[2]["model"] == "stories" and lines[2]["depth"] == 1
