"""`outpace score`: how likely a model finds a given text, token by token."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from outpace.cli.options import AdapterName, CacheDtype, Cards, DeviceName, DtypeName, ModelName, NoCompile
from outpace.cli.output import print_json, write_text
from outpace.cli.values import Device, Dtype, model_card, prompt_text, text_file
from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.api.bytewise import NextBytes
    from outpace.api.engine import LanguageModel
    from outpace.api.scoring import Scored

__all__ = ["score"]

_SHOWN = 10  # bytes


def score(
    text: Annotated[str | None, typer.Argument(help="The text to score; - reads it from standard input.")] = None,
    model: ModelName = "stories",
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the text from a file; - = standard input.")
    ] = None,
    dtype: DtypeName = Dtype.AUTO,
    device: DeviceName = Device.AUTO,
    card: Cards = None,
    adapter: AdapterName = None,
    no_compile: NoCompile = False,
    cache_dtype: CacheDtype = "auto",
    source: Annotated[
        str | None, typer.Option(help="Of an encoder-decoder: the source behind which the text is scored.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Pairs to score, 'source TAB target' a line: a log-probability for each."),
    ] = None,
    nbest: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Candidates to rank anew, 'source ||| text ||| score' a line."),
    ] = None,
    weight: Annotated[float, typer.Option(help="With --nbest: of the model's log-probability.")] = 1.0,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Of a masked model: maskings that the bound is estimated from (128).")
    ] = None,
    bytes_: Annotated[
        bool, typer.Option("--bytes", help="The text as bytes, over all tokens that cover them, and the next byte.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of a masked model: seed of the maskings.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one object (a line each with --pairs).")] = False,
) -> None:
    """Print the log-probability of each token of a text after those before it, their sum, and bits per byte.

    Probabilities are the model's own: no temperature, cuts or penalties. The first token has none, unless the tokenizer
    begins every text with a start token, which is then the first.

    A masked model that sees its whole canvas gives a lower bound, estimated from --samples maskings of the text; shown
    are each token's share of it, and the standard error of the sum.

    With --bytes, the log-probability that a text begins with these bytes, whatever tokens cover them, and the likeliest
    bytes behind it: a text may end inside a word, or a token.

    An encoder-decoder scores a text behind its --source, end token included; --pairs does so for many, in one go: the
    feature by which n-best lists and phrase tables are rescored.

    With --nbest, a causal model ranks the candidates of each source anew, by score + --weight times log-probability.
    """
    if nbest is not None and (text is not None or any(given is not None for given in (prompt_file, source, pairs))):
        raise ConfigError("An n-best list was given, and something else to score besides.", "Leave one out.")
    if pairs is not None and (text is not None or prompt_file is not None or source is not None):
        raise ConfigError("Pairs were given, and a text or a source besides.", "Leave one out.")
    if bytes_ and any(other is not None for other in (nbest, pairs, source, samples)):
        raise ConfigError("--bytes is of a causal model's text.", "Leave out --nbest, --pairs, --source and --samples.")
    from outpace.api.fusing import read_nbest, rescore_nbest

    rows = [] if pairs is None else _read_pairs(pairs)
    candidates = [] if nbest is None else read_nbest(text_file(nbest), nbest)
    given = prompt_text(text, prompt_file) if pairs is None and nbest is None else ""
    has_source = bool(rows) or source is not None
    from outpace.api.engine import load
    from outpace.api.estimating import check_scored
    from outpace.api.scoring import check_causal, check_pairs
    from outpace.models.opening import offered_by

    replaced = model_card(card or [])
    offered = offered_by(model, replaced)
    if offered is not None:  # before any weight is read
        check_pairs(offered) if has_source else check_scored(offered, samples)
        if candidates:
            check_causal(offered)
    lm = load(
        model,
        dtype=dtype.value,
        device=device.value,
        is_compiled=not no_compile,
        cache_dtype=cache_dtype,
        card=replaced,
        adapter=adapter,
    )
    if candidates:
        for candidate in rescore_nbest(lm, candidates, weight):
            print_json(asdict(candidate)) if json else write_text(f"{candidate}\n")
        return
    if rows:
        for one in lm.score_pairs(rows):
            print_json(one.to_dict()) if json else write_text(f"{one.log_prob:.4f}\n")
        return
    if bytes_:
        found = lm.next_bytes(given)
        print_json(found.to_dict()) if json else write_text(_byte_table(found))
        return
    scored: Scored = lm.score(given, samples, seed) if source is None else lm.score_pairs([(source, given)])[0]
    print_json(scored.to_dict()) if json else write_text(_table(scored, lm))


def _read_pairs(path: str) -> list[tuple[str, str]]:
    """Return the pairs of a file.

    Raises:
        ConfigError: it cannot be read, is empty, or a line does not hold a source and a target.
    """
    lines = text_file(path).rstrip("\n").split("\n")
    found = list[tuple[str, str]]()
    for number, line in enumerate(lines, 1):
        sides = tuple(side.strip() for side in line.split("\t"))
        if len(sides) != 2 or not all(sides):
            raise ConfigError(f"Line {number} of {path} is no pair.", "Write a source, a tab and a target.")
        found.append((sides[0], sides[1]))
    return found


def _byte_table(found: NextBytes) -> str:
    """Return the likeliest bytes behind a text, a line each, and what the text comes to."""
    lines = [f"{chance:>10.6f}  {byte!r}" for byte, chance in found.likeliest(_SHOWN)]
    lines.append(f"{found.end:>10.6f}  the end")
    bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits per byte"
    counted = f"{found.num_covers} covers, {found.num_forwards} forwards"
    lines.append(f"{found.log_prob:>10.4f}  in all, {found.num_bytes} bytes{bits}; {counted}")
    return "\n".join(lines) + "\n"


def _table(scored: Scored, lm: LanguageModel) -> str:
    """Return a line per token, and what they come to."""
    lines = []
    for token, log_prob in zip(scored.tokens, scored.log_probs, strict=True):
        spelled = "" if lm.tokenizer is None else repr(lm.tokenizer.decode([token], skip_special=False))
        lines.append(f"{'-' if log_prob is None else f'{log_prob:.4f}':>10}  {token:>7}  {spelled}")
    bits = "" if scored.bits_per_byte is None else f", {scored.bits_per_byte:.4f} bits per byte"
    lines.append(f"{scored.log_prob:>10.4f}  in all, {scored.num_scored} tokens, {scored.num_bytes} bytes{bits}")
    if scored.samples:
        lines.extend(note for note in scored.notes if "maskings" in note)
    return "\n".join(lines) + "\n"
