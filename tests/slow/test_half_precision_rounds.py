"""Three rounds in half precision on the CPU, against fp32; a loss scale against gradients too small for fp16."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from test_half_precision import HALVES, PRECISIONS, trainer_in
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stepalign.models.base import BaseModel
from stepalign.training.trainer import Trainer

pytestmark = pytest.mark.slow
Rounds = dict[str, tuple[list[dict[str, Any]], Trainer]]


def moved(trainer: Trainer) -> Tensor:
    """All tensors B in one."""
    return torch.cat([value.detach().flatten() for name, value in trainer.policy.adapter.items() if "lora_B" in name])


@pytest.fixture(scope="module")
def rounds(tiny_sd: BaseModel) -> Rounds:
    """Three rounds' rows in every precision, and their trainers."""
    found = {}
    for precision in PRECISIONS:
        trainer = trainer_in(tiny_sd, precision)
        found[precision] = [trainer.round() for _ in range(3)], trainer
    return found


@pytest.mark.parametrize("precision", HALVES)
def test_three_rounds_end_near_those_in_fp32(precision: str, rounds: Rounds) -> None:
    """bf16 has 8 bits of mantissa, fp16 11."""
    (expected, whole), (rows, half) = rounds["fp32"], rounds[precision]
    for row, other in zip(rows, expected, strict=True):
        assert row["judge_score"] == pytest.approx(other["judge_score"], rel=0.02)
        assert row["loss"] == pytest.approx(other["loss"], abs=0.01)
        assert row["rms_delta"] == pytest.approx(other["rms_delta"], rel=0.1)
        assert (row["comparisons"], row["updates"], row["skipped"]) == (4, 2, 0)
        assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert cosine_similarity(moved(half), moved(whole), dim=0) > 0.9
    assert all(value.dtype == torch.float32 for value in half.policy.adapter.values())


def test_gradients_too_small_for_fp16_survive_under_loss_scaling(tiny_sd: BaseModel) -> None:
    """fp16 ends at 6e-8; a loss 1e-6 times as large has smaller gradients, which scaling by 65536 keeps."""
    norms = {}
    for scaling in (True, False):
        trainer = trainer_in(tiny_sd, "fp16")
        trainer.updater.scaler = torch.amp.GradScaler("cpu", enabled=scaling)
        trainer.updater.scaler.scale(torch.zeros(()))
        objective = trainer.objective
        trainer.objective = lambda *given, objective=objective: scaled(objective(*given), 1e-6)
        norms[scaling] = trainer.round()["grad_norm"] * 1e6
    expected = trainer_in(tiny_sd, "fp32").round()["grad_norm"]
    assert norms[True] == pytest.approx(expected, rel=0.05)
    assert norms[False] < 0.9 * expected


def scaled(found: tuple[Tensor, Any], factor: float) -> tuple[Tensor, Any]:
    return found[0] * factor, found[1]
