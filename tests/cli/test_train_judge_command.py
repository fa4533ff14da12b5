"""`stepalign train-judge`: files that cannot be used write nothing; every kind of base model trains a judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_runs import recipe_of, rows, summary, trained, write_pairs
from judge_runs import words as command
from safetensors.torch import load_file, save_file
from tiny_models import save_sd2
from transformers import CLIPTokenizer

from stepalign import miniature
from stepalign.cli import main
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.runs.judge_recipes import JudgeRecipe

Factory = pytest.TempPathFactory
Refused = Callable[..., str]
MINIATURE_DATA = (
    "--judge.start miniature --data.pairs miniature --evaluation.pairs miniature --evaluation.split held-out"
)
SHORT = "--training.num_steps 1 --training.batch_size 2 --data.num_rows 4 --evaluation.num_pairs 2"


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """A function that runs a command, checks that it is refused in one line and writes nothing; gives the line."""

    def run(*words: str, status: int = 1) -> str:
        output = tmp_path / "runs" / "judge"
        capfd.readouterr()
        assert main([*words, "--output", str(output)]) == status
        assert not output.parent.exists()
        lines = capfd.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith("stepalign: ")] == lines[-1:]
        assert all("━" in line or "rows once: " in line or " pairs ready, " in line for line in lines[:-1])
        return lines[-1]

    return run


# The command


def test_without_an_output_it_is_named_after_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[tuple[JudgeRecipe, Path]] = []

    def record(recipe: JudgeRecipe, output: Path, **_: object) -> dict[str, Any]:
        ran.append((recipe, output))
        return {}

    monkeypatch.setattr("stepalign.runs.judge_job.run_judge", record)
    monkeypatch.chdir(tmp_path)
    assert main(["train-judge", "spm-sdxl", "--seed", "3"]) == 0
    assert ran == [(recipe_of(["train-judge", "spm-sdxl", "--seed", "3"]), Path("runs/spm-sdxl"))]


def test_an_interrupted_training_reports_how_to_resume(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stepalign.runs.judge_job.run_judge", interrupted)
    assert "the same command resumes" in refused("train-judge", "spm-miniature", status=130)


# Bad input that only loaded files show; `wrong_inputs` has all other


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model {folder}", "model_index.json"),
        ("--base.vae {folder}", "vae: cannot load"),
        ("--judge.start {folder}", "judge.start: "),
        ("--judge.start {folder}/nan", "not finite numbers"),
        ("--judge.start {folder}/spm.bin", "judge.start: "),
        ("--data.pairs {folder}", "data.pairs: the folder"),
        ("--data.pairs {folder}/broken.jsonl", "6 of 20 rows cannot be used"),
        ("--data.split validation", "'validation'"),
        ("--evaluation.split validation", "'validation'"),
        ("--evaluation.pairs {folder}/pairs.jsonl --evaluation.split validation", "evaluation.split"),
        ("--data.relabel_with {folder}", "data.relabel_with: "),
        ("--data.cache {folder}/pairs.jsonl/below", "pairs.jsonl"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(
    words: str, said: str, tmp_path: Path, tmp_path_factory: Factory, refused: Refused
) -> None:
    folder = tmp_path / "given"
    pairs = write_pairs(folder)
    for number in (3, 6, 9):
        (folder / f"{number}a.png").write_bytes((folder / f"{number}a.png").read_bytes()[:200])
    (folder / "spm.bin").write_text("no checkpoint")
    broken = pairs.read_text().replace('"a ring, number 1"', '""').splitlines()
    (folder / "broken.jsonl").write_text("\n".join([*broken[:-1], "{"]))
    shutil.copytree(miniature.PICKSCORE, folder / "nan")
    weights = load_file(folder / "nan/model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"] * float("nan")
    save_file(weights, folder / "nan/model.safetensors", metadata={"format": "pt"})
    assert said in refused(*command(tmp_path_factory, words.format(folder=folder)))


# Other base models


@pytest.fixture(scope="module")
def sd2_folder(tokenizer: CLIPTokenizer, tmp_path_factory: Factory) -> Path:
    return save_sd2(tmp_path_factory.mktemp("sd2"), tokenizer)


def test_a_judge_of_sdxl_trains_by_the_papers_recipe(
    tiny_sdxl_folder: Path, tmp_path: Path, tmp_path_factory: Factory
) -> None:
    """Relabelled, in bf16, at the paper's rate, of which the first of 500 warm-up steps takes a part."""
    changes = f"--model {tiny_sdxl_folder} --base.vae None --data.relabel_with miniature {MINIATURE_DATA} {SHORT}"
    words = command(tmp_path_factory, f"{changes} --training.num_warmup_steps 500", recipe="spm-sdxl")
    output = trained(words, tmp_path / "run")
    (row,) = rows(output)
    assert row["learning_rate"] == pytest.approx(1e-6 / 500)
    assert row["grad_norm"] > 0
    assert summary(output)["base"] == tiny_sdxl_folder.name
    judge = StepAwarePreferenceModel.from_pretrained(output / "judge")
    assert judge.vision_model.adaLN_modulation[1].weight.any()


def test_a_judge_of_a_base_that_predicts_velocities_trains(
    sd2_folder: Path, tmp_path: Path, tmp_path_factory: Factory
) -> None:
    words = command(tmp_path_factory, f"--model {sd2_folder} {MINIATURE_DATA} {SHORT}", recipe="spm-sd15")
    output = trained(words, tmp_path / "run")
    assert rows(output)[0]["grad_norm"] > 0
    assert summary(output)["base"] == sd2_folder.name


def test_files_of_ones_own_train_a_judge_with_faults_told(
    tmp_path: Path, tmp_path_factory: Factory, capfd: pytest.CaptureFixture[str]
) -> None:
    """One broken image among twenty pairs is within the share that is allowed, and listed."""
    pairs = write_pairs(tmp_path / "mine")
    (tmp_path / "mine/4b.png").write_bytes(b"no image")
    changes = f"--data.pairs {pairs} --data.max_bad 0.05 --evaluation.pairs None --evaluation.share 0.2"
    output = trained(command(tmp_path_factory, f"{changes} {SHORT} --data.num_rows 20"), tmp_path / "run")
    data = summary(output)["data"]
    assert (data["num_rows"], data["num_skipped"]) == (20, 1)
    (skipped,) = data["skipped"]
    assert skipped["where"] == "pairs.jsonl line 5"
    assert "the second image" in skipped["reason"]
    assert "1 of 20 rows could not be read" in (output / "judge/README.md").read_text()
    assert "of latents in" in capfd.readouterr().err
