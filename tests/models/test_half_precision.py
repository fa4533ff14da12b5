"""Rounds in fp16 and bf16: weights in half precision under autocast, as a run's on a GPU, here on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from worlds import BrightnessJudge, make_trainer

from stepalign.models.base import BaseModel
from stepalign.models.policy import GuidedNetwork, LoraPolicy
from stepalign.training.trainer import Trainer

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HALVES = ["fp16", "bf16"]


def trainer_in(model: BaseModel, precision: str, **given: Any) -> Trainer:
    """Two-step rounds of a copy of the network in a precision."""
    dtype = PRECISIONS[precision]
    guided = GuidedNetwork(
        copy.deepcopy(model.network).to(dtype),
        negative=model.negative(),
        guidance_scale=2.0,
        autocast=None if precision == "fp32" else dtype,
        max_batch=given.pop("max_batch", None),
    )
    sizes = {"prompts_per_round": 2, "sample_batch": 2, "comparisons_per_update": 2, "train_batch": 2}
    return make_trainer(
        policy=LoraPolicy(guided, rank=2, seed=0),
        judge=BrightnessJudge(100.0),
        encode=model.encode,
        latent_shape=model.latent_shape,
        num_steps=2,
        loss_scaling=precision == "fp16",
        **(sizes | given),
    )


@pytest.mark.parametrize("precision", HALVES)
def test_before_training_policy_and_reference_are_the_same_bits(precision: str, tiny_sd: BaseModel) -> None:
    """The policy with a gradient, the reference without; in batches of 1, too."""
    trainer = trainer_in(tiny_sd, precision, max_batch=1, comparisons_per_update=4)
    row = trainer.round()
    assert set(row["rms_delta_by_timestep"].values()) == {0.0}
    assert (row["margin"], row["accuracy"]) == (0.0, 0.5)
    assert trainer.round()["rms_delta"] > 0
