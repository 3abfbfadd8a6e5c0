"""`python -m outpace.train RECIPE`: train a model of the zoo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from outpace.errors import OutpaceError

from . import RECIPES, TRANSLATIONS, train


def main() -> int:
    """Parse the command line and train; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train", description=__doc__)
    parser.add_argument("recipe", help=", ".join([*RECIPES, *TRANSLATIONS]))
    parser.add_argument("--out", type=Path, help="directory of the run (default: runs/RECIPE)")
    parser.add_argument("--data", type=Path, help="folder of training texts (default: ./data)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--steps", type=int, help="steps of the whole run (default: the recipe's)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        return train(
            given.recipe,
            given.out or Path("runs") / given.recipe,
            data=given.data,
            resume=given.resume,
            steps=given.steps,
            threads=given.threads,
            seed=given.seed,
        )
    except OutpaceError as error:
        print(f"outpace: {error}\n{error.hint}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
