"""Write one text plainly and accelerated, time both, and check that they are the same text.

    python examples/demo.py [--method prompt-lookup] [--max-tokens 120] [--temperature 0.5] [--seed 0]

The repetitions of the two methods alternate, each speed is the median of its repetitions, and only decoding is timed.
The exit status is 0 only if both methods wrote the same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import outpace
from outpace import LanguageModel, Result

Results = dict[str, list[Result]]  # by method, one per repetition

PLAIN = "autoregressive"
# Much of what follows this prompt stands in it already: the kind of text that prompt lookup is meant for.
PROMPT = '''\
class Message:
    """A message with a few fields, each kept as text."""

    def __init__(self):
        self._name = None
        self._title = None
        self._author = None

    def get_name(self):
        """Return the name of this message, or None."""
        return self._name

    def set_name(self, name):
        """Set the name of this message."""
        self._name = name

    def get_title(self):
        """Return the title of this message, or None."""
        return self._title

    def set_title(self, title):
'''


def main() -> int:
    """Run the demonstration and return its exit status."""
    options = read_options()
    console = Console(highlight=False)
    with console.status("Loading the model"):
        lm = load(options.model)
    results = run(lm, [PLAIN, options.method], options, console)
    for method, repetitions in results.items():
        text = Text.assemble((options.prompt, "dim"), repetitions[0].text)
        console.print(Panel(text, title=method, title_align="left"))
    console.print(speed_table(results))
    plain, fast = (repetitions[0].tokens for repetitions in results.values())
    if plain == fast:
        console.print(f"The two texts are identical: {len(plain)} of {len(plain)} tokens.", style="green")
        return 0
    same = next((i for i, (a, b) in enumerate(zip(plain, fast, strict=False)) if a != b), min(len(plain), len(fast)))
    console.print(f"The two texts differ from token {same + 1} on.", style="red")
    return 1


def load(model: str) -> LanguageModel:
    """Load a model so that rounding cannot tell the two methods apart.

    Compiled kernels give a token the same bits whatever is scored beside it. Without a compiler bfloat16 does not, and
    about one text in two would part at a near-tie; float32 keeps them together.
    """
    lm = outpace.load(model)
    return lm if getattr(lm.target, "is_invariant", False) else outpace.load(model, dtype="float32")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Write one text plainly and accelerated, and compare.")
    parser.add_argument("--model", default="stories")
    parser.add_argument("--method", default="prompt-lookup")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


def run(lm: LanguageModel, methods: list[str], options: argparse.Namespace, console: Console) -> Results:
    """Generate with each method in turn, `repetitions` times, after one warm-up each that does not count."""
    results: Results = {method: [] for method in methods}
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(methods) * (options.repetitions + 1))
        for repetition in range(options.repetitions + 1):
            for method in methods:
                progress.update(task, description=method)
                result = lm.generate(
                    options.prompt,
                    method=method,
                    max_tokens=options.max_tokens,
                    temperature=options.temperature,
                    seed=options.seed,
                )
                if repetition:
                    results[method].append(result)
                progress.advance(task)
    return results


def speed_table(results: Results) -> Table:
    """Median speed of each method, its ratio to plain decoding, and tokens per step (one forward of the model)."""
    table = Table("method", "tokens per second", "speed-up", "tokens per step")
    rates = {name: statistics.median(result.tokens_per_second for result in of) for name, of in results.items()}
    for name, repetitions in results.items():
        usage = repetitions[0].usage
        per_step = usage.num_emitted / max(1, usage.num_steps)
        table.add_row(name, f"{rates[name]:.0f}", f"{rates[name] / rates[PLAIN]:.2f}x", f"{per_step:.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
