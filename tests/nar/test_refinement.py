"""Texts refined in passes: what slow formulas give, a row as it is alone, and templates that stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from outpace.errors import CapabilityError, ConfigError
from outpace.methods.base import Method
from outpace.methods.misfit import check_fit
from outpace.methods.whole.mask_predict import MaskPredict
from outpace.methods.whole.sundae import Sundae
from outpace.models.nar.cmlm import Cmlm, CmlmConfig
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import Pass
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import row_key
from outpace.testing.world import drive, make_run
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.refining import Masked, Unrolled, smoothed
from outpace.train.pairs import make_batch

VOCAB, MASK = 23, 1
SOURCES = [[5, 6, 7, 8, 9, 10, 11, 0], [9, 0], [4, 4, 12, 13, 0]]
SIZES: dict[str, Any] = {"width": 16, "heads": 2, "ffn": 24, "encoder_layers": 1, "decoder_layers": 2, "reach": 4}


def network(blank: str = "mask", **sizes: Any) -> Cmlm:
    torch.manual_seed(3)
    net = Cmlm(CmlmConfig(vocab_size=VOCAB, max_source=16, max_positions=24, blank=blank, **(SIZES | sizes)))
    for weight in net.parameters():  # sure enough of itself that the passes differ, unsure enough that they go on
        weight.data.mul_((2.0 if blank == "mask" else 4.0) if weight.ndim == 2 else 1.0)
    return net.double().eval()


class Letters:
    """A tokenizer of single letters, "a" being token 4."""

    vocab_size = VOCAB

    def encode(self, text: str, is_special: bool = True) -> list[int]:
        return [ord(letter) - ord("a") + 4 if letter != "#" else 0 for letter in text]


def written(net: Cmlm | Ctc, method: Method, sources: list[list[int]] = SOURCES) -> tuple[list[list[int]], Run]:
    rows = [Row([2], 1, row_key(1, at), 40, (0,), source=source) for at, source in enumerate(sources)]
    run = make_run(method, target=NarModel(net))
    run.tokenizers = {"target": Letters()}
    return [row.written for row in drive(run, rows) and rows], run


def single(net: Cmlm, source: list[int], length: int) -> Pass:
    """A pass over one text."""
    run = NarModel(net).begin([source])
    return net.lay(run, torch.tensor([length]))


def likeliest_lengths(net: Cmlm, source: list[int]) -> list[int]:
    """Every length by its probability."""
    law = NarModel(net).begin([source]).extra["length law"][0]
    scored = [(float(law[index]), len(source) - 4 + index) for index in range(9)]
    return [length for _, length in sorted(scored, key=lambda pair: (-pair[0], pair[1])) if length >= 1]


@torch.no_grad()
def slow_mask_predict(net: Cmlm, source: list[int], passes: int, lengths: int) -> list[int]:
    """One text, one place at a time, as D.3 says: the best of the lengths by its mean log-probability."""
    found = []
    for length in likeliest_lengths(net, source)[:lengths]:
        run, tokens, scores = single(net, source, length), [MASK] * length, [0.0] * length
        before: list[int] = []
        for number in range(passes):
            log_probs = net.read(run, torch.tensor([tokens]))[0]
            for place in range(length):
                if tokens[place] == MASK:
                    scores[place], tokens[place] = max((float(lp), -i) for i, lp in enumerate(log_probs[place]))
                    tokens[place] *= -1
            if tokens == before:
                break
            before = list(tokens)
            if number + 1 < passes:
                least = sorted(range(length), key=lambda place: (scores[place], place))
                for place in least[: length * (passes - 1 - number) // passes]:
                    tokens[place] = MASK
        found.append((sum(scores) / length, before))
    return max(found, key=lambda pair: pair[0])[1]


@torch.no_grad()
def slow_sundae(net: Cmlm, source: list[int], passes: int) -> list[int]:
    """Read and write the whole of one text again and again."""
    length = likeliest_lengths(net, source)[0]
    run, tokens = single(net, source, length), net.blanks(torch.tensor([length]))
    for _ in range(passes):
        tokens = net.read(run, tokens).argmax(-1)
    return tokens[0].tolist()


@pytest.mark.parametrize("lengths", [1, 3])
@pytest.mark.parametrize("passes", [1, 2, 4, 7])
def test_mask_predict_is_what_its_formulas_say(passes: int, lengths: int) -> None:
    net = network()
    texts, _ = written(net, MaskPredict(passes=passes, lengths=lengths))
    assert texts == [[*slow_mask_predict(net, source, passes, lengths), 0] for source in SOURCES]


def test_passes_change_texts() -> None:
    """Else the tests above would compare one pass with itself."""
    net = network()
    assert len({tuple(map(tuple, written(net, MaskPredict(passes=count))[0])) for count in (1, 3, 6)}) > 1
    assert written(network("noise"), Sundae(passes=1))[0] != written(network("noise"), Sundae(passes=5))[0]


@pytest.mark.parametrize("passes", [1, 3, 8])
def test_sundae_reads_and_writes_until_nothing_changes(passes: int) -> None:
    net = network("noise")
    texts, _ = written(net, Sundae(passes=passes))
    assert texts == [[*slow_sundae(net, source, passes), 0] for source in SOURCES]


@pytest.mark.parametrize("method", [MaskPredict(passes=5, lengths=2), Sundae(passes=5, share=0.4, lengths=2)])
def test_a_row_is_written_as_it_is_alone(method: Method) -> None:
    net = network()
    together, _ = written(net, method)
    assert together == [written(net, method, [source])[0][0] for source in SOURCES]


def test_passes_are_counted() -> None:
    counts = [written(network(), MaskPredict(passes=count), SOURCES[:1])[1].counters["target"].nfe for count in (1, 3)]
    assert counts[1] == counts[0] + 2


@pytest.mark.parametrize("method", [MaskPredict, Sundae])
def test_what_a_template_gives_stays_and_gaps_are_filled(method: type[MaskPredict | Sundae]) -> None:
    for text in written(network("noise"), method(template="ab{3}c{1}de", passes=6))[0]:
        assert [text[place] for place in (0, 1, 5, 7, 8)] == [4, 5, 6, 7, 8]
        assert len(text) == 10
        assert all(token > 2 for token in text[:-1])
        assert text[-1] == 0


@pytest.mark.parametrize("template", ["abc", "{0}", "{25}", "a{2}#"])
def test_templates_that_cannot_be_filled_are_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="cannot be filled in"):
        written(network(), Sundae(template=template))


@pytest.mark.parametrize("settings", [{"passes": 0}, {"lengths": 0}])
def test_no_pass_and_no_length_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        MaskPredict(**settings)
    assert "1 or more" in caught.value.hint


def test_other_kinds_are_refused() -> None:
    net = Ctc(CtcConfig(vocab_size=VOCAB, width=16, heads=2, ffn=24, encoder_layers=1, decoder_layers=1)).double()
    with pytest.raises(CapabilityError, match="of the kind cmlm or sga"):
        check_fit(MaskPredict(), NarModel(net).capabilities)


def test_the_likelihood_adds_up_length_and_tokens() -> None:
    net = network()
    batch = make_batch(SOURCES, [[5, 6, 7, 4, 0], [8, 9, 0], [12, 0]])  # type: ignore[arg-type]
    run = TrainedNar(net).begin(batch)
    found = net.nll(net.finish(run), run)
    for row, (source, target) in enumerate(zip(SOURCES, ([5, 6, 7, 4], [8, 9], [12]), strict=True)):
        alone = single(net, source, len(target))
        law = alone.extra["length law"][0, len(target) - len(source) + 4]
        said = net.read(alone, torch.full((1, len(target)), MASK))[0]
        wanted = -law - sum(said[place, token] for place, token in enumerate(target))
        torch.testing.assert_close(found[row], wanted)
    assert net.aligned(net.finish(run), run).tolist() == [[5, 6, 7, 4], [8, 9, -1, -1], [12, -1, -1, -1]]


def test_smoothing_spreads_a_share_over_what_can_be_said() -> None:
    laws = torch.tensor([[[0.7, 0.2, 0.1, 0.0]]]).double().log()
    wanted = -(0.9 * torch.tensor(0.2).log() + 0.1 * torch.tensor([0.7, 0.2, 0.1]).log().mean())
    torch.testing.assert_close(smoothed(laws, torch.tensor([[1]]), 0.1), wanted.double().view(1, 1))


@pytest.mark.parametrize("objective", [Masked(), Unrolled(), Unrolled(begin="blank")])
def test_what_is_learned_is_written(objective: Masked | Unrolled) -> None:
    """Two pairs are learned by heart; the untrained network writes something else."""
    torch.manual_seed(0)
    config = CmlmConfig(vocab_size=VOCAB, blank="mask" if objective == Masked() else "noise", dropout=0.0, **SIZES)
    network = TrainedNar(Cmlm(config))
    targets = [[5, 7, 9, 11, 0], [6, 6, 8, 0], [12, 13, 12, 14, 15, 0]]
    batch = make_batch(SOURCES, targets)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-2)
    for _ in range(40):
        optimiser.zero_grad()
        objective(network, batch).backward()
        optimiser.step()
    method = MaskPredict(passes=3) if objective == Masked() else Sundae(passes=3)
    assert written(network.net.eval(), method)[0] == targets  # type: ignore[arg-type]
