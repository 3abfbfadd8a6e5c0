"""Small tasks with exact scores: list tasks whose answer tokens depend on each other, and planning puzzles.

Everything is generated from a seed; nothing is downloaded. The list tasks follow ParallelBench (Kang et al., 2025), the
puzzles the format in which Dream was evaluated (Ye et al., 2025).
"""

from __future__ import annotations

from outpace.papers import Paper

from .example import Example
from .registry import TASKS, Task, score, test_examples, training_examples

__all__ = ["TASKS", "Example", "Task", "score", "test_examples", "training_examples"]

PAPERS = (
    Paper(
        "ParallelBench: Understanding the Trade-offs of Parallel Decoding in Diffusion LLMs",
        "Kang et al.",
        2025,
        "2510.04767",
        255,
        "All but the list tasks, which are generated anew.",
        "outpace bench --canvas results --sets tasks",
    ),
)
