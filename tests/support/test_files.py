"""A run's state on disk: whole or not at all."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from worlds import assert_same

from stepalign.support import files as checkpoint
from stepalign.support.files import RunState, load_checkpoint, load_state, previous, replacing, save_state, write_text


def some_state(num_rounds: int = 3) -> RunState:
    weights = {"a.lora_A.weight": torch.randn(2, 3), "a.lora_B.weight": torch.randn(3, 2)}
    parameter = torch.nn.Parameter(torch.randn(4))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.randn(4)
    optimizer.step()
    return RunState(
        prompts="a digest",
        num_rounds=num_rounds,
        num_updates=7,
        num_comparisons=123,
        seconds=1.5,
        calls={"sampling_policy": 10},
        adapter=weights,
        ema={name: tensor / 2 for name, tensor in weights.items()},
        optimizer=optimizer.state_dict(),
        scaler={},
    )


def test_a_saved_state_comes_back_bit_identical(tmp_path: Path) -> None:
    state = some_state()
    save_state(state, tmp_path / "new folder" / "checkpoint.pt")
    loaded = load_state(tmp_path / "new folder" / "checkpoint.pt", RunState)
    for field in dataclasses.fields(RunState):
        assert_same(getattr(state, field.name), getattr(loaded, field.name))


def test_saving_keeps_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    for num_rounds in (3, 4, 5):
        save_state(some_state(num_rounds), tmp_path / "checkpoint.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "previous-checkpoint.pt"]
    for path, num_rounds in ((tmp_path / "checkpoint.pt", 5), (previous(tmp_path / "checkpoint.pt"), 4)):
        assert load_state(path, RunState).num_rounds == num_rounds


def test_a_state_keeps_the_rows_that_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 3}\n')
    save_state(some_state(), tmp_path / "checkpoint.pt", files=("metrics.jsonl", "guard.jsonl"))
    state, texts = load_checkpoint(tmp_path / "checkpoint.pt", RunState)
    assert (state.num_rounds, texts) == (3, {"metrics.jsonl": '{"round": 3}\n'})


def test_values_of_another_type_are_no_state(tmp_path: Path) -> None:
    for name, value in (("adapter", 3), ("num_rounds", "three"), ("optimizer", [1])):
        values = {field.name: getattr(some_state(), field.name) for field in dataclasses.fields(RunState)}
        torch.save(values | {name: value}, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match=f"is not a checkpoint of this version .{name} is of type"):
            load_state(tmp_path / "checkpoint.pt", RunState)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(some_state(), tmp_path / "checkpoint.pt")

    def full_disk(values: object, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_state(some_state(4), tmp_path / "checkpoint.pt")
    assert load_state(tmp_path / "checkpoint.pt", RunState).num_rounds == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_file_keeps_its_old_text_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_who_has_the_old_file_open_goes_on_reading_it(tmp_path: Path) -> None:
    write_text(tmp_path / "notes.txt", "old text")
    with (tmp_path / "notes.txt").open() as reader:
        write_text(tmp_path / "notes.txt", "new")
        assert reader.read() == "old text"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_cut_short_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_state(some_state(), path)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"checkpoint: .*checkpoint\.pt is not a checkpoint of this version"):
            load_state(path, RunState)


def test_a_flipped_bit_in_the_weights_is_a_clear_error(tmp_path: Path) -> None:
    path, state = tmp_path / "checkpoint.pt", some_state()
    save_state(state, path)
    whole = path.read_bytes()
    for tensor in (*state.adapter.values(), *state.ema.values()):
        damaged = bytearray(whole)
        damaged[whole.index(tensor.numpy().tobytes())] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint: .* is not a checkpoint of this version"):
            load_state(path, RunState)


def test_other_bytes_are_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    rng = random.Random(0)
    contents = [rng.randbytes(rng.randrange(1, 200)) for _ in range(200)]
    for content in [*contents, b"name: a recipe\n", b"PK\x03\x04", b"\x80\x02}q\x00.", b"GIF89a"]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint: .* is not a checkpoint of this version"):
            load_state(path, RunState)


@pytest.mark.parametrize("values", [[1, 2], {"num_rounds": 3}, torch.zeros(3), None], ids=str)
def test_a_file_of_something_else_is_a_clear_error(tmp_path: Path, values: object) -> None:
    torch.save(values, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="is not a checkpoint of this version"):
        load_state(tmp_path / "checkpoint.pt", RunState)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"num_rounds": Path("x")}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="is not a checkpoint of this version"):
        load_state(tmp_path / "checkpoint.pt", RunState)


def test_a_missing_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint: "):
        load_state(tmp_path / "nowhere.pt", RunState)
