"""What is measured of a folder's images as a set: diversity, drift, GenEval's verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scored import Notes
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from stepalign.cli import evaluate, main
from stepalign.data.manifest import ImageRow, read_manifest, write_manifest
from stepalign.data.prompt_sets import load_prompt_set
from stepalign.evaluation.image_sets import ImageSets, diversity, geneval_prompts, measure_sets
from stepalign.miniature import PICKSCORE
from stepalign.scorers.diversity import pairwise_distance
from stepalign.scorers.drift import CMMD_NETWORK
from stepalign.scorers.features import ImageFeatures
from stepalign.scorers.geneval.colour_head import COLOUR_MODEL
from stepalign.scorers.geneval.detection import DETECTOR
from stepalign.support.watcher import NullWatcher

FEATURES = str(PICKSCORE)
"""The miniature's CLIP."""


def folder_of(path: Path, prompts: list[str], *, num_images: int, seed: int) -> list[ImageRow]:
    """A folder of random images."""
    rng = np.random.default_rng(seed)
    path.mkdir()
    rows = []
    for p, prompt in enumerate(prompts):
        for n in range(num_images):
            name = f"{p}-{n}.png"
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path / name)
            rows.append(ImageRow(p, n, prompt, name))
    write_manifest(path, rows)
    return rows


def measured(path: Path, rows: list[ImageRow], watcher: NullWatcher | None = None, **choice: Any) -> dict[str, Any]:
    return measure_sets(path, rows, ImageSets(**choice), device="cpu", watcher=watcher or NullWatcher())


def test_nothing_is_measured_unless_asked_for(tmp_path: Path) -> None:
    assert measured(tmp_path / "a", folder_of(tmp_path / "a", ["x"], num_images=1, seed=0)) == {}


def test_diversity_is_of_each_prompts_own_images_in_any_order_of_rows(tmp_path: Path) -> None:
    rows = folder_of(tmp_path / "a", ["x", "y", "z"], num_images=3, seed=0)
    network = ImageFeatures.from_pretrained(FEATURES)
    by_prompt = [[Image.open(tmp_path / "a" / f"{p}-{n}.png") for n in range(3)] for p in range(3)]
    by_hand = pairwise_distance(torch.stack([network.extract(group) for group in by_prompt]))
    for order in (rows, rows[::-1], [rows[i] for i in (0, 3, 6, 1, 4, 7, 2, 5, 8)]):
        found = measured(tmp_path / "a", order, features=FEATURES)["diversity"]
        assert found["pairwise_distance"]["mean"] == pytest.approx(by_hand.mean().item(), rel=1e-4)
        assert found["pairwise_distance"]["num_prompts"] == 3
        assert 1 < found["vendi_score"]["mean"] <= 3
    assert found["features"]["sha256"] == network.record.sha256


def test_diversity_wants_equally_many_images_of_every_prompt() -> None:
    rows = [ImageRow(0, 0, "x", "a"), ImageRow(0, 1, "x", "b"), ImageRow(1, 0, "y", "c")]
    with pytest.raises(ValueError, match=r"images of a prompt must be equally many .*, got \[1, 2\]"):
        diversity(rows, torch.randn(3, 4))


def test_single_images_have_no_diversity_and_that_is_said(tmp_path: Path) -> None:
    watcher = Notes()
    rows = folder_of(tmp_path / "a", ["x", "y"], num_images=1, seed=0)
    assert "diversity" not in measured(tmp_path / "a", rows, watcher, features=FEATURES)
    assert watcher.notes == ["diversity needs at least two images of every prompt; not measured"]


@pytest.fixture(scope="module")
def cmmd_network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random CLIP that takes images of CMMD's size."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(image_size=336, patch_size=112, projection_dim=8, **sizes)
    folder = tmp_path_factory.mktemp("cmmd")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return str(folder)


def test_a_folder_has_not_moved_from_itself_and_has_from_another(tmp_path: Path, cmmd_network: str) -> None:
    rows = folder_of(tmp_path / "a", ["x", "y"], num_images=4, seed=0)
    folder_of(tmp_path / "grey", ["x"], num_images=8, seed=1)
    for path in (tmp_path / "grey").glob("*.png"):
        Image.open(path).convert("L").save(path)
    given = {"features": FEATURES, "cmmd": cmmd_network}
    same = measured(tmp_path / "a", rows, reference=tmp_path / "a", **given)["drift"]
    other = measured(tmp_path / "a", rows, reference=tmp_path / "grey", **given)["drift"]
    assert same["cmmd"]["value"] == pytest.approx(0, abs=1e-6)
    assert other["cmmd"]["value"] > 1e-3
    assert other["kid"]["mean"] > abs(same["kid"]["mean"])
    assert (other["kid"]["subset_size"], other["num_images"], other["reference"]) == (4, 8, "grey")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"reference": Path("x")}, "reference must be given with features or cmmd"),
        ({"cmmd": "x"}, "cmmd must be given with a reference"),
    ],
)
def test_choices_that_measure_nothing_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSets(**choice)


@pytest.fixture
def geneval_folder(tmp_path: Path) -> tuple[Path, list[ImageRow]]:
    """One image of GenEval's first prompt of each task."""
    metadata = load_prompt_set("geneval").metadata or []
    first = {row["tag"]: row["prompt"] for row in reversed(metadata)}
    return tmp_path / "g", folder_of(tmp_path / "g", list(first.values()), num_images=1, seed=0)


def test_imported_detections_are_judged_by_what_each_prompt_asks(
    tmp_path: Path, geneval_folder: tuple[Path, list[ImageRow]]
) -> None:
    """Every required object is detected, in its colour, but nothing is where the position prompt wants it."""
    folder, rows = geneval_folder
    lines = []
    for row, prompt in zip(rows, geneval_prompts(folder, rows), strict=True):
        objects = [
            {"class_index": part.class_index, "score": 0.95, "box": [0, 0, 10, 10], "colour": part.colour or "red"}
            for part in prompt.include
            for _ in range(part.count)
        ]
        lines.append(json.dumps({"file": row.file, "detections": objects}))
    path = tmp_path / "found.jsonl"
    path.write_text("\n".join(lines))
    found = measured(folder, rows, geneval=True, detector=str(path))["geneval"]
    right = {task: row["accuracy"] for task, row in found["tasks"].items()}
    assert right == {task: float(task != "position") for task in right}
    assert len(right) == 6
    assert found["overall"] == pytest.approx(5 / 6)
    assert found["name"] == "GenEval (detections of found.jsonl)"
    (failure,) = found["failures"]
    assert failure["prompt"] == next(r.prompt for r in rows if r.file == failure["file"])
    assert json.loads(json.dumps(found)) is not None


def test_other_prompts_have_no_verdict(tmp_path: Path) -> None:
    rows = folder_of(tmp_path / "a", ["a photo of a bench", "a castle"], num_images=1, seed=0)
    with pytest.raises(ValueError, match="1 of 2 images are of prompts that are not GenEval's, the first 'a castle'"):
        geneval_prompts(tmp_path / "a", read_manifest(tmp_path / "a"))
    assert geneval_prompts(tmp_path / "a", rows[:1])[0].tag == "single_object"


def test_genevals_own_layout_is_judged_without_a_manifest_or_scorers_which_may_come_later(tmp_path: Path) -> None:
    folder, metadata = tmp_path / "g", load_prompt_set("geneval").metadata or []
    for number in range(2):
        (folder / f"{number:05d}/samples").mkdir(parents=True)
        (folder / f"{number:05d}/metadata.jsonl").write_text(json.dumps(metadata[number]))
        Image.new("RGB", (32, 32), (40 * number, 9, 9)).save(folder / f"{number:05d}/samples/0000.png")
    found = [{"class": "bench", "score": 0.9, "box": [1, 1, 9, 9], "colour": "red"}]
    lines = [json.dumps({"file": f"{n:05d}/samples/0000.png", "detections": found}) for n in range(2)]
    (tmp_path / "found.jsonl").write_text("\n".join(lines))
    assert main(["evaluate", str(folder), "--geneval", "--detector", str(tmp_path / "found.jsonl")]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["geneval"]["tasks"]["single_object"]["accuracy"] == 0.5
    assert results["scores"] == {}
    assert "| single object | 0.5000" in (folder / "results.md").read_text()
    assert main(["evaluate", str(folder), "--scorers", f"pickscore={FEATURES}"]) == 0
    later = json.loads((folder / "results.json").read_text())
    assert later["geneval"] == results["geneval"]
    assert list(later["scores"]) == ["pickscore"]


def test_the_command_names_the_released_networks() -> None:
    named = (evaluate.DETECTOR, evaluate.COLOURS, evaluate.CMMD)
    assert named == (DETECTOR, COLOUR_MODEL, CMMD_NETWORK)
