"""The README's Python runs as printed."""

import re
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(README), "exec"), {})
    with Image.open(tmp_path / "runs/from-python/circle.png") as picture:
        assert picture.size == (32, 32)
    assert (tmp_path / "runs/from-python/report.html").is_file()
