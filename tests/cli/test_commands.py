"""The other commands, help, the catalogue, and that nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests_cli import ROOT, Command, start

import outpace
from outpace import zoo
from outpace.errors import ConfigError, ModelError
from outpace.methods import catalogue, registry

COMMANDS = [
    *(
        "generate",
        "graph",
        "score",
        "chat",
        "serve",
        "get",
        "methods",
        "searches",
        "laws",
        "models",
        "certify",
        "bench",
    ),
    *("index", "tune", "trace", "new-method", "papers", "cite", "train", "drafter"),
]
FLAGS = """--model --method --option --max-tokens --temperature --top-k --top-p --min-p --typical-p --repetition-penalty
--presence-penalty --frequency-penalty --logit-bias --bad-word --min-tokens --regex --json-schema --grammar --seed
--num-samples --stop --dtype --device --ignore-eos --json --chat --trace --logprobs --batch-invariant --no-compile
--card --adapter --infill --threads --system --tools --documents --template --chat-variable --stop-token --keep-special
--sampling --generation-config --prefix --prompt-file --batch --out --batch-size --top-log-probs
--sets --fuse --fuse-weight --law
--tensor-parallel --cache-dtype --source-language --target-language --cut-source --search --healed --help""".split()


def flags_of(name: str) -> set[str]:
    import typer

    from outpace.cli import app

    command = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    parameters = command.get_params(command.make_context(name, [], resilient_parsing=True))
    return {flag for parameter in parameters for flag in parameter.opts if flag.startswith("--")}


def test_help_names_every_command_in_order(cli: Command) -> None:
    ended = cli("--help")
    assert (ended.status, ended.err) == (0, "")
    found = [word for line in ended.out.splitlines() for word in line.strip("│ ").split()[:1] if word in COMMANDS]
    assert found == COMMANDS
    assert cli().out == ended.out


def test_generate_has_exactly_the_promised_flags() -> None:
    assert flags_of("generate") == set(FLAGS)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("score", {"--model", "--prompt-file", "--source", "--pairs", "--json"}),
        ("graph", {"--model", "--method", "--max-tokens", "--json"}),
        ("methods", {"--json", "--model"}),
        ("models", {"--json"}),
        ("get", {"--from", "--json"}),
        (
            "chat",
            {"--model", "--method", "--system", "--plain", "--template", "--temperature", "--max-tokens", "--json"},
        ),
        ("certify", {"--model", "--method", "--prompts", "--json", "--all"}),
        ("trace", {"--html", "--json"}),
        ("tune", {"--model", "--json"}),
        ("bench", {"--model", "--methods", "--prompts", "--peers", "--json", "--plot", "--translation"}),
        ("bench", {"--canvas", "--canvas-models", "--causal-models", "--sets", "--stacks"}),
        ("train recipe", {"--out", "--resume", "--data"}),
        ("train drafter", {"--kind", "--target", "--out", "--resume", "--texts-from", "--steps"}),
        ("drafter check", {"--target", "--keep"}),
    ],
)
def test_scripts_may_rely_on_these_flags(name: str, flags: set[str]) -> None:
    assert flags_of(name) >= flags


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(cli: Command, name: str) -> None:
    ended = cli(name, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert f"outpace {name}" in ended.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["methods"],
        ["methods", "jacobi"],
        ["cite", "jacobi"],
        ["papers"],
        ["models"],
        ["get"],
        ["generate", "--help"],
        ["chat", "--help"],
    ],
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from outpace.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'jinja2'} & set(sys.modules);"
        "assert not heavy, heavy; assert len(sys.modules) < 600, len(sys.modules); sys.exit(status)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OUTPACE_PLUGINS": "0"}
    run = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_version(cli: Command) -> None:
    assert cli("--version").out == f"outpace {outpace.__version__}\n"


# Methods


def test_the_catalogue_equals_the_classes() -> None:
    stored = json.loads((ROOT / "src/outpace/methods/catalogue.json").read_text(encoding="utf-8"))
    assert stored == catalogue.build(), "run: python -m outpace.methods.catalogue"


def test_the_catalogue_tells_everything(cli: Command) -> None:
    entries = {entry["name"]: entry for entry in outpace.methods()}
    assert list(entries) == registry.method_names()
    for entry in entries.values():
        if not entry["plugin"]:
            assert entry["summary"] and entry["family"] and entry["guarantee"] and entry["doc"].count("\n") >= 4
            assert all(setting["doc"] for setting in entry["settings"]), entry["name"]
    assert json.loads(cli("methods", "--json").out) == list(entries.values())
    fitting = [entry["name"] for entry in json.loads(cli("methods", "--model", "stories-mask", "--json").out)]
    assert "fast-dllm" in fitting and "suffix" not in fitting and "mask-predict" not in fitting
    assert json.loads(cli("methods", "draft-model", "--json").out) == entries["draft-model"]


def test_methods_can_be_read(cli: Command) -> None:
    listed = cli("methods").out
    assert all(name in listed for name in registry.built_in_names())
    told = cli("methods", "draft-model").out
    assert "draft_len = 8" in told and "2211.17192" in told and "Guarantee" in told


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a method; importing it is noticed."""
    info = tmp_path / "fancy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fancy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[outpace.methods]\nfancy-lookup = fancy_lookup:Fancy\n")
    origin = "outpace.methods.speculative.prompt_lookup"
    code = f"from {origin} import PromptLookup\nclass Fancy(PromptLookup):\n    '''Fancy.'''\n"
    (tmp_path / "fancy_lookup.py").write_text('"""A fancy one."""\n' + code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("OUTPACE_PLUGINS", raising=False)
    registry._entries.cache_clear()
    yield
    registry._entries.cache_clear()
    sys.modules.pop("fancy_lookup", None)


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_is_listed_by_name_and_loaded_only_when_asked_about(cli: Command) -> None:
    entry = catalogue.methods()[-1]
    assert (entry["name"], entry["guarantee"], entry["plugin"]) == ("fancy-lookup", "plug-in", "fancy")
    assert "fancy-lookup" in cli("methods").out
    assert "fancy_lookup" not in sys.modules
    told = json.loads(cli("methods", "fancy-lookup", "--json").out)
    assert (told["doc"], told["family"], told["plugin"]) == ("A fancy one.", "speculative", "fancy")


def test_cite_prints_bibtex(cli: Command) -> None:
    shown = cli("cite", "draft-model").out
    assert shown.startswith("@misc{leviathan2023fast,\n")
    assert "author = {Leviathan and Kalman and Matias}" in shown and "eprint = {2211.17192}" in shown
    assert "author = {Santilli and others}" in cli("cite", "jacobi").out
    assert "eprint" not in cli("cite", "prompt-lookup").out


# Models


def test_models_lists_the_zoo(cli: Command) -> None:
    shown = json.loads(cli("models", "--json").out)
    assert [card["name"] for card in shown["zoo"]] == list(zoo.names())
    for card in shown["zoo"]:
        assert card["parameters"] > 0 and card["num_bytes"] > 0 and card["licence"] == "Apache-2.0" and card["sources"]
    assert all(name in cli("models").out for name in zoo.names())


def test_models_tells_and_clears_what_is_kept_of_packed_weights(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    monkeypatch.setenv("OUTPACE_PACKED_GB", "3")
    (tmp_path / "packed").mkdir()
    for name in ("a.weights", "b.weights", "lock"):
        (tmp_path / "packed" / name).write_bytes(bytes(50))
    expected = {"folder": str(tmp_path / "packed"), "num_files": 2, "num_bytes": 100, "limit": 3_000_000_000}
    assert json.loads(cli("models", "--json").out)["packed"] == expected
    assert "2 packed models, 0.0 MB of 3,000.0 MB" in cli("models").out
    assert "0 packed models" in cli("models", "--clear-packed").out
    assert json.loads(cli("models", "--json").out)["packed"]["num_files"] == 0
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["lock"]


def test_the_zoo_knows_its_models_and_drafters() -> None:
    assert {"stories", "stories-draft", "stories-mask"} <= set(zoo.names())
    assert zoo.drafter_of("stories") == zoo.drafter_of(str(zoo.path("stories"))) == "stories-draft"
    with pytest.raises(ConfigError, match="No drafter") as caught:
        zoo.drafter_of("stories-mask")
    assert "-o draft=" in caught.value.hint
    with pytest.raises(ModelError, match="storys") as missing:
        zoo.path("storys")
    assert "'stories'" in missing.value.hint


def test_the_weights_stay_small() -> None:
    assert sum(zoo.card(name).num_bytes for name in zoo.names()) <= 64_000_000


# Writing files


def test_new_method_writes_two_files(cli: Command, tmp_path: Path) -> None:
    ended = cli("new-method", "my-method", "--out", tmp_path)
    assert ended.status == 0 and "my_method.py" in ended.out
    assert {path.name for path in tmp_path.iterdir()} == {"my_method.py", "test_my_method.py"}
    again = cli("new-method", "my-method", "--out", tmp_path)
    assert again.status == 2 and "exists already" in again.err


def test_python_m_outpace_is_the_command() -> None:
    process = start("--version")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.decode()) == (0, f"outpace {outpace.__version__}\n")


# Proving and measuring


def test_certify_prints_a_certificate(cli: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the fox the fox the\n\nthe lazy dog and the lazy")
    # There is no time to see anything: the certificate says so, and is refused.
    arguments = ["certify", "--model", tiny, "--method", "jacobi", "--prompts", tmp_path / "prompts.txt"]
    ended = cli(*arguments, "--dtype", "float64", "--time-limit", 0, "--json")
    shown = json.loads(ended.out)
    assert (ended.status, shown["holds"], shown["method"], shown["guarantee"]) == (3, False, "jacobi", "exact")
    assert shown["verdict"] == "too little seen" and "greedy" in shown["missing"] and shown["dropped"]


def test_certify_refuses_to_call_an_approximate_method_exact(cli: Command) -> None:
    ended = cli("certify", "--model", "stories-mask", "--method", "masked-diffusion")
    assert ended.status == 1 and "approximate: no certificate" in ended.out


def test_bench_prints_a_table_and_writes_what_it_measured(cli: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the fox the fox the")
    arguments = ["--methods", "autoregressive,jacobi:window=3", "--prompts", tmp_path / "prompts.txt", "--repeats", 1]
    arguments += [
        "--max-tokens",
        6,
        "--paths",
        "eager",
        "--temperatures",
        0,
        "--no-memory",
        "--json",
        tmp_path / "x.json",
    ]
    ended = cli("bench", "--model", tiny, *arguments)
    assert ended.status == 0, ended.err
    assert "autoregressive" in ended.out and "jacobi" in ended.out
    assert json.loads((tmp_path / "x.json").read_text())["schema_version"] >= 1


def test_bytes_of_a_text_are_scored(cli: Command) -> None:
    shown = cli("score", "Once upon a ti", "--bytes").out
    assert "b'm'" in shown and "14 bytes" in shown
    found = json.loads(cli("score", "Once upon a ti", "--bytes", "--json").out)
    assert max(range(256), key=found["probs"].__getitem__) == ord("m")
    refused = cli("score", "a", "--bytes", "--source", "b")
    assert refused.status == 2 and "--bytes" in refused.err


def test_a_healed_prompt_goes_on_inside_its_word(cli: Command) -> None:
    found = json.loads(cli("generate", "Once upon a ti", "--healed", "--max-tokens", "4", "--json").out)
    assert found["text"].startswith("me")


def test_passages_are_retrieved(cli: Command, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The king counted his gold.\n\nOnce upon a time, there was a little girl named Lily.\n")
    asked = ("retrieve", "Once upon a time", "--corpus", str(corpus), "--beams", "4", "--prompt", "{query}")
    assert json.loads(cli(*asked, "--json").out.splitlines()[0])["passage"] == 1
    assert cli(*asked).out.startswith("1. passage 1")
    corpus.write_text("\n")
    refused = cli(*asked)
    assert refused.status == 2 and "no text" in refused.err
