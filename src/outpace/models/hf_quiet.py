"""What transformers says while a model is loaded or tried: kept away, or cut down to the first line of an error."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["first_line", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' log, progress bars and warnings away while a model is loaded or tried."""
    from transformers.utils import logging as found

    theirs: Any = found
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
