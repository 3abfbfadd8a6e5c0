"""A language model beside a translator: fused with its beams, and over its n-best lists, against beams alone.

    outpace train english-no-positions --out runs/english-no-positions
    python -m outpace.bench.fusion --lm runs/english-no-positions --data data

Shallow fusion adds weight * log p(next token) of the language model in every step of the search; rescoring adds weight
* log p(text) to the scores of the texts that the search without it returns, divided by their lengths as the search
divides. BLEU is that of tatoeba's held-out pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError

__all__ = ["main", "run_fusion"]

_SET = "tatoeba-pairs:test"


def run_fusion(
    model: str, other: str, data: Path | None, weights: Sequence[float], count: int = 200, beams: int = 4
) -> Report:
    """Translate a set with each weight.

    Args:
        model: an encoder-decoder from German to English.
        other: a causal model of the same vocabulary.
        data: folder of public texts.
        weights: of the language model.
        count: sentences.
        beams: of the search, and texts of an n-best list.

    Raises:
        ConfigError: no sentence, or no weight.
        CapabilityError: models that do not fit.
    """
    from outpace.api.engine import load
    from outpace.api.fusing import Candidate, fuse, rescore_nbest
    from outpace.train.bleu import bleu
    from outpace.train.data import find_data
    from outpace.train.translation_quality import read_set, translate

    if count < 1 or not weights:
        raise ConfigError("No sentence or no weight was named.", "Give one or more of each.")
    pairs = read_set(_SET, find_data(data), count)
    lm, teller = load(model), load(other)
    wanted, rows = [target for _, target in pairs], list[dict[str, float]]()
    spelled = f"beam-search:beams={beams},n_best={beams}"
    sources = [source for source, _ in pairs]
    found = lm.generate(sources, method="beam-search", options={"beams": beams, "n_best": beams})
    lists = [found[at * beams : (at + 1) * beams] for at in range(len(pairs))]
    for weight in weights:
        fused = translate(fuse(lm, teller, weight), sources, spelled.split(",n_best")[0])
        candidates = [
            Candidate(str(at), one.text, (str(len(one.tokens)),), (one.score or 0.0) * len(one.tokens))
            for at, row in enumerate(lists)
            for one in row
            if one.text
        ]
        ranked = rescore_nbest(teller, candidates, weight)
        best: dict[str, str] = {}
        for one in sorted(ranked, key=lambda one: -one.score / int(one.features[0])):
            best.setdefault(one.source, one.text)
        texts = [best.get(str(at), "") for at in range(len(pairs))]
        rows.append({"weight": weight, "fused": bleu([r.text for r in fused], wanted), "rescored": bleu(texts, wanted)})
    cells = [[f"{row['weight']:g}", f"{row['fused']:.2f}", f"{row['rescored']:.2f}"] for row in rows]
    table = Table("", ("weight", "BLEU, fused with the beams", "BLEU, n-best rescored"), cells)
    asked = {"model": model, "lm": Path(other).name, "set": _SET, "sentences": len(pairs), "beams": beams}
    return new_report("fusion", asked, describe(), rows, tables=[table], notes=["Weight 0: the beams alone."])


def _work(given: argparse.Namespace) -> None:
    report = run_fusion(given.model, given.lm, given.data, given.weights, given.sentences, given.beams)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("fusion", __doc__, threads=1)
    parser.add_argument("--model", default="translate", help="the translator (default: %(default)s)")
    parser.add_argument("--lm", required=True, help="the language model")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.4], help="of its scores")
    parser.add_argument("--sentences", type=int, default=200, help="of the set (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=4, help="of the search (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
