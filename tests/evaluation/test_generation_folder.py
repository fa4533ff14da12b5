"""The folder that images are drawn into: how it goes on, whom it belongs to, and how processes share it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_generation import PROMPTS, choose, images, levels_apart

from stepalign.data.manifest import ImageRow, read_manifest
from stepalign.evaluation import generation as module
from stepalign.evaluation.generation import generate_folder
from stepalign.models.base import BaseModel
from stepalign.runs.recipes import FrozenModel
from stepalign.runs.run import Run
from stepalign.support.claim import Claim
from stepalign.support.watcher import NullWatcher

FILES = ("images", "manifest.jsonl")


@dataclass
class Listener:
    """Remembers notes and progress, and can do something after a batch."""

    after: Callable[[int], None] = lambda done: None
    notes: list[str] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)

    def phase(self, name: str, done: int, total: int) -> None:
        assert name == "sample"
        self.progress.append((done, total))
        self.after(done)

    def round(self, row: dict[str, Any], total: int) -> None:
        raise AssertionError

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def finished(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of three prompts."""
    folder = tmp_path_factory.mktemp("finished") / "a new folder"
    generate_folder(choose(tiny_sd_folder), PROMPTS, folder)
    return folder


def nothing(*_: object) -> BaseModel:
    raise AssertionError("nothing is to be loaded or generated")


# What is in it


def test_the_files_are_a_manifest_a_record_and_an_image_per_row(finished: Path) -> None:
    files = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    names = [f"images/0000{p}-{n}.png" for p in range(3) for n in range(2)]
    assert files == sorted(["files.json", "generation.json", "manifest.jsonl", "stepalign.json", *names])
    assert read_manifest(finished) == [
        ImageRow(p, n, PROMPTS[p], f"images/0000{p}-{n}.png", 0, None) for p in range(3) for n in range(2)
    ]
    assert {(image.size, image.mode) for image in images(finished).values()} == {((64, 64), "RGB")}


def test_a_long_prompt_is_drawn_and_told_of(tiny_sd_folder: Path, tmp_path: Path) -> None:
    listener = Listener()
    record = generate_folder(choose(tiny_sd_folder, num_images=1), ["a cat " * 200, "熊"], tmp_path, watcher=listener)
    assert listener.notes == ["1 of 2 prompts are longer than text_encoder reads, and are cut"]
    assert record["prompts_cut"] == {"num_prompts": 2, "cut": {"text_encoder": 1}}
    assert listener.progress == [(2, 2)]
    assert [row.prompt for row in read_manifest(tmp_path)] == ["a cat " * 200, "熊"]


@pytest.mark.parametrize(
    ("prompts", "categories", "complaint"),
    [
        ([], None, "prompts: none were given"),
        (["a cat", " \n"], None, "prompts: number 1, counted from 0, is empty"),
        (["a cat", "a dog"], ["animals"], "categories: 1 were given for 2 prompts"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused(
    prompts: list[str], categories: list[str] | None, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        generate_folder(choose(tmp_path), prompts, tmp_path / "out", categories=categories)


def test_prompts_are_encoded_once_and_few_are_kept(
    tiny_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[BaseModel] = []
    load = module.base_model

    def remembered(name: str, base: FrozenModel) -> BaseModel:
        models.append(load(name, base))
        return models[-1]

    monkeypatch.setattr(module, "base_model", remembered)
    monkeypatch.setattr(module, "BATCHES_ENCODED", 1)
    held: list[set[str]] = []
    listener = Listener(after=lambda done: held.append(set(models[0]._rows)))
    prompts = ["a cat", "a dog", "two boats"]
    generate_folder(choose(tiny_sd_folder, batch_size=1), prompts, tmp_path, watcher=listener)
    assert models[0].num_encoded == len(prompts) + 1  # and the empty one, for guidance
    assert [rows - {""} for rows in held] == [{prompts[index // 2]} for index in range(6)]


# Going on


def stopped_after(num: int) -> Listener:
    def stop(done: int) -> None:
        if done >= num:
            raise KeyboardInterrupt

    return Listener(after=stop)


def test_a_killed_call_goes_on_where_it_stopped(finished: Path, tiny_sd_folder: Path, tmp_path: Path) -> None:
    """Batches of 4: the first is kept, but for an image that was cut short since."""
    choice = choose(tiny_sd_folder, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        generate_folder(choice, PROMPTS, tmp_path, watcher=stopped_after(4))
    assert not (tmp_path / "manifest.jsonl").exists()
    assert not (tmp_path / "generation.json").exists()
    cut, kept = tmp_path / "images/00000-1.png", tmp_path / "images/00000-0.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    (tmp_path / "images/.00002-0.png.12345.tmp").write_bytes(b"half an image")
    before, listener = kept.stat().st_mtime_ns, Listener()
    record = generate_folder(choice, PROMPTS, tmp_path, watcher=listener)
    assert listener.notes == ["3 of 6 images are there; generating the others"]
    assert listener.progress == [(3, 3)]
    assert record["timing"]["num_kept"] == 3
    assert kept.stat().st_mtime_ns == before
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        Path(row.file).name for row in read_manifest(finished)
    ]
    ours, theirs = images(tmp_path), images(finished)
    assert max(levels_apart(ours[key], theirs[key]) for key in theirs) <= 1


def test_a_finished_folder_is_returned_from_anywhere_at_any_batch_size(
    finished: Path, tiny_sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_generate", nothing)
    record = json.loads((finished / "generation.json").read_text())
    assert generate_folder(choose(tiny_sd_folder), PROMPTS, finished) == record
    monkeypatch.chdir(tiny_sd_folder.parent)
    base = FrozenModel(guidance_scale=3.0, max_batch=3)
    assert generate_folder(choose(Path(tiny_sd_folder.name), batch_size=1, base=base), PROMPTS, finished) == record


# Whose it is


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 1}, "seed is 0, this call's 1"),
        ({"num_steps": 3}, "num_steps is 2, this call's 3"),
        ({"eta": 0.5}, "eta is 0.0, this call's 0.5"),
        ({"num_images": 1}, "num_images is 2, this call's 1"),
        ({"base": FrozenModel(guidance_scale=4.0)}, "base.guidance_scale is 3.0, this call's 4.0"),
        ({"base": FrozenModel(guidance_scale=3.0, resolution=(64, 32))}, r"base.resolution is None, .* \[64, 32\]"),
        ({"unet": "owner/name"}, "unet is None, this call's 'owner/name'"),
        ({"adapters": ("LORA:0.5",)}, "num_adapters is 0, this call's 1"),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    changes: dict[str, Any], field: str, finished: Path, tiny_sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "base_model", nothing)
    monkeypatch.setattr(module, "adapter_digest", lambda name: "0")
    with pytest.raises(ValueError, match=rf"^output: .* is another run's: its {field}; give another directory"):
        generate_folder(choose(tiny_sd_folder, **changes), PROMPTS, finished)


def test_a_folder_of_other_prompts_or_categories_is_refused(finished: Path, tiny_sd_folder: Path) -> None:
    choice = choose(tiny_sd_folder)
    for prompts, categories in ((["a cat", "a dog", "a cat"], None), (PROMPTS[:2], None), (PROMPTS, ["a", "b", "c"])):
        with pytest.raises(ValueError, match=r"^output: .* its prompts is '"):
            generate_folder(choice, prompts, finished, categories=categories)


def test_what_is_no_folder_of_images_is_refused(tiny_sd_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for output, complaint in (
        (tmp_path, "holds files of something else"),
        (tmp_path / "notes.txt", "notes.txt is a file"),
        (tmp_path / "notes.txt/out", "notes.txt is a file"),
    ):
        with pytest.raises(ValueError, match=f"^output: .*{complaint}"):
            generate_folder(choose(tiny_sd_folder), PROMPTS, output)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# Sharing


@dataclass
class Process:
    """A place among two."""

    process_index: int
    num_processes: int = 2

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None: ...


def test_processes_share_the_images_and_the_main_one_writes_the_manifest(
    finished: Path, tiny_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process does all of its work before the main one, which holds the lock and decides what is missing."""
    choice, listeners = choose(tiny_sd_folder), (Listener(), Listener())
    run = Run(Claim(tmp_path, False), NullWatcher(), FILES)
    missing = [f"images/0000{p}-{n}.png" for p in range(3) for n in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "processes", lambda: Process(1))
        patch.setattr(module, "open_run", lambda *_, **__: nullcontext(run))
        patch.setattr("stepalign.support.claim.decided_by_main", lambda decide: None)
        patch.setattr(module, "decided_by_main", lambda decide: missing)
        assert generate_folder(choice, PROMPTS, tmp_path, watcher=listeners[1]) is None
    made = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert made == ["00000-1.png", "00001-1.png", "00002-1.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    monkeypatch.setattr(module, "processes", lambda: Process(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_run", lambda *_, **__: nullcontext(run))
        patch.setattr("stepalign.support.claim.decided_by_main", lambda decide: None)
        patch.setattr(module, "decided_by_main", lambda decide: missing)
        record = generate_folder(choice, PROMPTS, tmp_path, watcher=listeners[0])
    assert [listener.progress for listener in listeners] == [[(3, 3)], [(3, 3)]]
    assert (record["timing"]["num_processes"], record["num_images"], record["timing"]["num_kept"]) == (2, 6, 0)
    ours, theirs = images(tmp_path), images(finished)
    assert ours.keys() == theirs.keys()
    assert max(levels_apart(ours[key], theirs[key]) for key in theirs) <= 1
