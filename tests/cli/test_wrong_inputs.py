"""Whatever is wrong with a command: one line, a status, nothing written, no weights loaded and no hub asked before."""

from __future__ import annotations

from pathlib import Path

import pytest
from wrong_files import write_files
from wrong_inputs import WRONG_INPUTS

from stepalign.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    write_files(folder)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below a folder, with its size and time of modification."""
    found = ((path, path.stat()) for path in folder.rglob("*"))
    return {str(path): (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns) for path, stat in found}


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loading of a base model, a judge or a scorer, and any question to the hub, an unexpected error."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded, or the hub was asked, before all was checked that can be without")

    monkeypatch.setattr("stepalign.runs.assemble.load", loaded)
    monkeypatch.setattr("stepalign.miniature.scorers.miniature_scorer", loaded)
    for place in ("huggingface_hub.get_session", "huggingface_hub.utils._http.get_session"):
        monkeypatch.setattr(place, loaded)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(("words", "said", "status"), WRONG_INPUTS, ids=[words for words, *_ in WRONG_INPUTS])
def test_what_is_wrong_is_one_line_and_changes_nothing(
    words: str,
    said: str,
    status: int,
    files: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = snapshot(files) | snapshot(tmp_path)
    found = main([word.format(f=files, o=tmp_path / "run") for word in words.split()])
    out, err = capfd.readouterr()
    assert (found, out, err.count("\n")) == (status, "", 1), err
    assert err.startswith("stepalign: ")
    assert said in err
    assert "unexpected" not in err
    assert snapshot(files) | snapshot(tmp_path) == before
