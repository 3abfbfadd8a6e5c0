"""Small tasks with exact scores: list tasks whose answer tokens depend on each other, and planning puzzles.

Everything is generated from a seed; nothing is downloaded. The list tasks follow ParallelBench (Kang et al., 2025), the
puzzles the format in which Dream was evaluated (Ye et al., 2025).
"""

from __future__ import annotations

from .example import Example
from .registry import TASKS, Task, score, test_examples, training_examples

__all__ = ["TASKS", "Example", "Task", "score", "test_examples", "training_examples"]
