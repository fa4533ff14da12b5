"""A source, an objective and a batch of somebody else's, as the protocols ask for them and no more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from judge_world import LATENT_SHAPE as CACHED_SHAPE
from judge_world import bright_or_dark, ready
from torch import Tensor, nn
from worlds import LATENT_SHAPE, SMALL, ShiftPolicy, make_sampler

from stepalign.core.batch import Batch
from stepalign.core.experience import Collected, Experience
from stepalign.core.protocols import Grouped, Metrics, PairScorer, Policy, Sampler
from stepalign.judges.pairs import agreement
from stepalign.training.evaluate_judge import score_held_out
from stepalign.training.judge_settings import JudgeTraining
from stepalign.training.judge_trainer import JudgeTrainer
from stepalign.training.trainer import Trainer
from stepalign.training.updater import Updater

TARGET = 0.3


@dataclass(frozen=True, slots=True)
class Points(Batch):
    latent: Tensor
    kind: Tensor


class TenPoints:
    """Ten rows of two kinds a round, of which three do not train."""

    digest = "ten points"

    def collect(self, index: int, tick: Callable[[int, int], None]) -> Collected[Points]:
        tick(1, 1)
        latent = torch.full((7, *LATENT_SHAPE), float(index))
        points = Points(latent, torch.tensor([0, 0, 1, 1, 1, 0, 0]))
        own = Experience(points, position=torch.arange(7), step=torch.zeros(7, dtype=torch.long))
        return Collected([own], num_offered=10, metrics={"reward": [1.0, 3.0], "largest": 4 + index, "unknown": None})


def squares(policy: Policy, sampler: Sampler, batch: Points) -> tuple[Tensor, Metrics]:
    """The distance of the adapter from TARGET, whatever the points are."""
    loss = (policy.adapter["shift"] - TARGET + 0 * batch.latent).square().mean((1, 2, 3))
    distance = loss.detach().sqrt()
    return loss, {"distance": distance, "by kind": Grouped(distance, batch.kind)}


@pytest.fixture
def trainer() -> Trainer[Points]:
    updater = Updater(ShiftPolicy(), config=SMALL, seed=0)
    return Trainer(TenPoints(), squares, updater, sampler=make_sampler())


def test_two_rounds_report_whatever_source_and_objective_measure(trainer: Trainer[Points]) -> None:
    """One update of seven rows a round; Adam's first step is the learning rate, .01."""
    rows = [trainer.round(), trainer.round()]
    names = ("round", "reward", "largest", "unknown", "comparisons", "kept", "updates", "by kind")
    assert [{name: row[name] for name in names if name != "by kind"} for row in rows] == [
        dict(zip(names, values, strict=False))
        for values in ((1, 2.0, 4, None, 7, 0.7, 1), (2, 2.0, 5, None, 7, 0.7, 1))
    ]
    for row, distance in zip(rows, (TARGET, TARGET - 0.01), strict=True):
        assert row["distance"] == pytest.approx(distance, abs=1e-5)
        assert list(row["by kind"]) == ["1", "0"]
        assert row["by kind"]["1"] == pytest.approx(distance, abs=1e-5)


def test_a_run_of_other_data_is_not_resumed(trainer: Trainer[Points]) -> None:
    state = trainer.state()
    trainer.source.digest = "other points"
    with pytest.raises(ValueError, match="not those this run began with"):
        trainer.restore(state)


# A judge of somebody else's


class LatentScorer:
    """Scores noiseless latents by one linear layer; its texts have no weights of their own."""

    def __init__(self) -> None:
        self.model = nn.Linear(math.prod(CACHED_SHAPE), 1)
        nn.init.zeros_(self.model.weight)
        self.device = torch.device("cpu")

    def enable_gradient_checkpointing(self) -> None:
        raise AssertionError("nobody asked for it")

    def text_features(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 1)

    def scores(self, latents: Tensor, cond: object, text: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.model(latents.flatten(2))[..., 0] + text

    def drain_counters(self) -> dict[str, int]:
        return {"latents": 2}


def test_any_scorer_of_pairs_can_be_trained(tmp_path: Path) -> None:
    pairs = ready(tmp_path, bright_or_dark(12))
    scorer = LatentScorer()
    assert isinstance(scorer, PairScorer)
    config = JudgeTraining(
        num_steps=20, batch_size=12, micro_batch=5, learning_rate=0.1, num_warmup_steps=0, weight_decay=0.0
    )
    trainer = JudgeTrainer(scorer, pairs=pairs, config=config, seed=0)
    rows = [trainer.step() for _ in range(20)]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["accuracy"] == 1
    assert trainer.calls == {"latents": 40}
    found = score_held_out(scorer, pairs, timesteps=(1,), seed=0, batch_size=5)
    assert agreement(found[1], pairs.label).nanmean() == 1
