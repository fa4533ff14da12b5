"""README, docs and CONTRIBUTING: their Python runs, their YAML is read, and the files they name exist."""

import re
from pathlib import Path

import pytest
from PIL import Image

from stepalign.runs.recipes import load_recipe
from stepalign.runs.sweep_file import load_sweep

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps and prompts."""
    (block,) = blocks("docs/python.md", "python")
    smaller = {
        '"prompts_per_round": 4': '"prompts_per_round": 1',
        '{"num_prompts": 8}': '{"num_prompts": 2}, "base": {"num_steps": 2}, "branching": {"num_candidates": 2}',
        "guidance_scale=2.0": "guidance_scale=2.0, num_inference_steps=2",
    }
    for printed, less in smaller.items():
        assert printed in block
        block = block.replace(printed, less)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/python.md", "exec"), {})
    with Image.open(tmp_path / "runs/from-python/circle.png") as image:
        assert image.size == (32, 32)
    assert (tmp_path / "runs/from-python/report.html").is_file()


def test_the_yaml_of_the_docs_is_read(tmp_path: Path) -> None:
    (recipe_text,), (sweep_text,) = blocks("docs/align.md", "yaml"), blocks("docs/sweep.md", "yaml")
    (tmp_path / "mine.yaml").write_text(recipe_text)
    (tmp_path / "sweep.yaml").write_text(sweep_text)
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.base.max_batch == 16
    assert recipe.evaluation.prompts == "held-out.txt"
    assert list(load_sweep(tmp_path / "sweep.yaml").tables) == ["continuation"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_and_named_modules_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    modules = re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|json|md|yaml))`", text)
    folders = (ROOT, ROOT / "src/stepalign", ROOT / "benchmarks")
    missing += [name for name in modules if not any((folder / name).exists() for folder in folders)]
    assert missing == []
