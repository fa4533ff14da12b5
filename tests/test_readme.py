"""The README's Python runs as printed, and its YAML is a recipe."""

import re
from pathlib import Path

import pytest
from PIL import Image

from stepalign.runs.recipes import load_recipe

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(README), "exec"), {})
    with Image.open(tmp_path / "runs/from-python/circle.png") as picture:
        assert picture.size == (32, 32)
    assert (tmp_path / "runs/from-python/report.html").is_file()


def test_the_readmes_yaml_is_a_recipe(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.base.max_batch == 16
    assert recipe.evaluation.prompts == "held-out.txt"
