"""A graph of sub-problems: those that wait for nothing are written in one batch, what they wrote goes to the others.

Source: Jin et al. (2024), Adaptive Skeleton Graph Decoding, arXiv 2402.12280: points of an answer with dependencies
between them; each point is written once its parents are, from a prompt that holds what they wrote, by a larger or a
smaller model as its difficulty asks.

Guarantee: each node's text is what `LanguageModel.generate` writes from its prompt alone, under the same settings.
Cost: as many batches as there are nodes on the longest path, for each model that they name.
Differences: the graph is given, as JSON or text, where the paper lets a model write it; nodes of one depth form a
batch, so a child waits for all nodes of earlier depths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from outpace.errors import ConfigError
from outpace.papers import Paper

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.api.result import Result

__all__ = ["PAPERS", "Node", "Written", "depths", "read_graph", "write_graph"]

PAPERS = (
    Paper(
        "Adaptive Skeleton Graph Decoding",
        "Jin et al.",
        2024,
        "2402.12280",
        319,
        "The graph is given, where the paper lets a model write it.",
        "outpace graph examples/story.graph --model easy=stories-draft --model hard=stories",
    ),
)

_LINE = re.compile(r"(?P<name>[\w-]+)\s*(?:\[(?P<level>[\w-]+)\])?\s*:\s?(?P<prompt>.*)", re.DOTALL)
_PARENT = re.compile(r"\{([\w-]+)\}")


@dataclass(frozen=True, slots=True)
class Node:
    """A sub-problem.

    Attributes:
        name: letters, digits, _ and -.
        prompt: what is written from; `{name}` stands for what that node wrote.
        level: its difficulty, which names a model; "" = the first one.
        after: nodes that it waits for besides those that its prompt names.
    """

    name: str
    prompt: str
    level: str = ""
    after: tuple[str, ...] = ()

    @property
    def parents(self) -> tuple[str, ...]:
        """The nodes that it waits for."""
        return tuple(dict.fromkeys((*_PARENT.findall(self.prompt), *self.after)))


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a node.

    Attributes:
        name, level: of the node.
        depth: nodes before it on the longest path to it.
        model: what wrote it.
        prompt: what it was written from.
        text: what was written.
        tokens: its ids.
        finish_reason: as of a `Result`.
    """

    name: str
    level: str
    depth: int
    model: str
    prompt: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def read_graph(text: str) -> list[Node]:
    """Return the nodes of a graph.

    As text, a node a line: `name: prompt` or `name [level]: prompt`; `\\n` in a prompt is a line's end, and lines that
    are empty or begin with # are skipped. As JSON, a list of objects with name, prompt and perhaps level and after.

    Raises:
        ConfigError: it cannot be read, a name comes twice, a parent is missing, or nodes wait for each other.
    """
    nodes = _read_json(text) if text.lstrip().startswith("[") else _read_lines(text)
    if not nodes:
        raise ConfigError("The graph has no node.", "Write a line for each: name: prompt.")
    names = [node.name for node in nodes]
    for node in nodes:
        if names.count(node.name) > 1:
            raise ConfigError(f"Two nodes are named {node.name!r}.", "Give each a name of its own.")
        missing = [parent for parent in node.parents if parent not in names]
        if missing:
            raise ConfigError(
                f"{node.name!r} waits for {missing[0]!r}, which is no node.", f"Nodes: {', '.join(names)}."
            )
    depths(nodes)
    return nodes


def _read_lines(text: str) -> list[Node]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ConfigError(f"Line {number} of the graph is no node.", "Write name: prompt, or name [level]: prompt.")
        found.append(Node(match["name"], match["prompt"].replace("\\n", "\n"), match["level"] or ""))
    return found


def _read_json(text: str) -> list[Node]:
    told = ConfigError("The graph is no list of nodes.", 'Write [{"name": "a", "prompt": "...", "level": "hard"}].')
    try:
        rows = json.loads(text)
        nodes = [Node(**{**row, "after": tuple(row.get("after", ()))}) for row in rows]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise told from error
    for node in nodes:
        texts = (node.name, node.prompt, node.level, *node.after)
        if not all(isinstance(value, str) for value in texts) or not re.fullmatch(r"[\w-]+", node.name):
            raise told
    return nodes


def depths(nodes: Sequence[Node]) -> list[int]:
    """Return how many nodes stand before each on the longest path to it.

    Raises:
        ConfigError: nodes wait for each other.
    """
    found, left = dict[str, int](), list(nodes)
    while left:
        ready = [node for node in left if all(parent in found for parent in node.parents)]
        if not ready:
            told = ", ".join(node.name for node in left)
            raise ConfigError(f"Nodes wait for each other: {told}.", "Leave a dependency out.")
        now = {node.name: 1 + max((found[parent] for parent in node.parents), default=-1) for node in ready}
        found |= now
        left = [node for node in left if node.name not in now]
    return [found[node.name] for node in nodes]


def write_graph(models: Mapping[str, LanguageModel], nodes: Sequence[Node], **arguments: Any) -> list[Written]:
    """Write every node, those of one depth and model in one batch; return them in the order of the nodes.

    Args:
        models: by level; the first writes nodes without one.
        nodes: from `read_graph`.
        **arguments: those of `LanguageModel.generate`.

    Raises:
        ConfigError: a level without a model, or an argument that does not hold.
    """
    if not models:
        raise ConfigError("No model was named.", "Give one.")
    unknown = [node for node in nodes if node.level and node.level not in models]
    if unknown:
        known = ", ".join(models) or "none"
        raise ConfigError(f"{unknown[0].name!r} is {unknown[0].level!r}, which no model is for.", f"Levels: {known}.")
    first, found, places = next(iter(models)), dict[str, Written](), depths(nodes)
    for depth in range(max(places, default=-1) + 1):
        due = [node for node, place in zip(nodes, places, strict=True) if place == depth]
        for level, lm in models.items():
            part = [node for node in due if (node.level or first) == level]
            if not part:
                continue
            prompts = [_PARENT.sub(lambda match: found[match[1]].text, node.prompt) for node in part]
            results: list[Result] = lm.generate(prompts, **arguments)
            for node, prompt, one in zip(part, prompts, results, strict=True):
                told = (lm.name, prompt, one.text, tuple(one.tokens), one.finish_reason)
                found[node.name] = Written(node.name, level, depth, *told)
    return [found[node.name] for node in nodes]
