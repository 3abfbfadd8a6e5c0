"""`outpace new-method` writes files that work as they are, and never writes over anything."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from outpace.cli.scaffold import write_method
from outpace.errors import ConfigError, StorageError


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a file; its neighbours can be imported by name, as pytest lets them."""
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_written_method_passes_its_written_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, test = write_method("two-words", tmp_path / "new")
    assert [method.name, test.name] == ["two_words.py", "test_two_words.py"]
    checks = [value for name, value in vars(load(test, monkeypatch)).items() if name.startswith("test_")]
    assert len(checks) == 2
    for check in checks:
        check()
    assert load(method, monkeypatch).TwoWords.name == "two-words"


@pytest.mark.parametrize("existing", ["mine.py", "test_mine.py"])
def test_nothing_is_written_over(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        write_method("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


@pytest.mark.parametrize("name", ["", "Mine", "my_method", "1st", "a--b", "-a", "a-", "import", "../up", "a b", "é"])
def test_unusable_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be called") as caught:
        write_method(name, tmp_path)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_method("mine", tmp_path / "file" / "inside")
