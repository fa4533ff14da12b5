"""Optimizer updates, at the level of gradients and steps: what is stepped on, and what is skipped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import normal
from torch import Tensor
from worlds import LATENT_SHAPE, ShiftPolicy, assert_same, encode, make_sampler, make_trainer

from stepalign.core.batch import StepComparisons
from stepalign.core.experience import Experience
from stepalign.core.protocols import Metrics
from stepalign.core.sampler import DDIM
from stepalign.objectives.settings import Stepwise
from stepalign.objectives.stepwise import stepwise_loss
from stepalign.support.finite import NotFinite
from stepalign.training import gradients as gradients_module
from stepalign.training import updater as module
from stepalign.training.settings import Training
from stepalign.training.trainer import Trainer
from stepalign.training.updater import Diverged, Row, Updater

SMALL_ENTRY = 1e-6
"""Of the gradient's first entry, where Adam's eps shows; the others are of size 1 to 100."""


def experience(num: int) -> Experience[StepComparisons]:
    """Comparisons of even prompts, each at a step of its own."""
    noise = normal(num, 2, *LATENT_SHAPE, dtype=torch.float32) * torch.linspace(1, 100, num)[:, None, None, None, None]
    noise[..., 0, 0] *= SMALL_ENTRY
    x_t = torch.zeros(num, 1, *LATENT_SHAPE)
    batch = StepComparisons(encode(["a"] * num), torch.full((num,), 9), x_t, x_t, noise)
    return Experience(batch, 2 * torch.arange(num), torch.zeros(num, dtype=torch.long))


class Linear:
    """A loss whose gradient is the comparison's first noise; remembers the noises."""

    def __init__(self) -> None:
        self.noises: list[Tensor] = []

    def __call__(self, policy: ShiftPolicy, sampler: DDIM, batch: StepComparisons) -> tuple[Tensor, Metrics]:
        self.noises.append(batch.noise[:, 0])
        losses = (batch.noise[:, 0] * policy.adapter["shift"]).sum((1, 2, 3))
        return losses, {}


def adamw(gradients: list[Tensor], start: Tensor, *, rate: float, decay: float) -> Tensor:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) in float64, eps = 1e-8."""
    weight, mean, square = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for step, gradient in enumerate((gradient.double() for gradient in gradients), start=1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        step_size = rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        weight = weight - rate * decay * weight - step_size
    return weight


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_an_update_is_adamws_step_on_the_mean_gradient_of_all_processes(
    num_processes: int, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 comparisons in three updates of 4; of two processes, the other one adds what it found in its share."""
    policy, objective, found = ShiftPolicy(), Linear(), experience(12 // num_processes)
    start = torch.linspace(1, 2, 8).view(LATENT_SHAPE)
    policy.load(adapter={"shift": start}, ema={"shift": start})
    config = Training(comparisons_per_update=4, train_batch=1, learning_rate=0.1, weight_decay=decay)
    trained = Updater(policy, config=config, seed=0)
    theirs = normal(*LATENT_SHAPE, seed=1, dtype=torch.float32) if num_processes == 2 else torch.zeros(LATENT_SHAPE)
    if num_processes == 2:
        others = [Row(2 * row + 1, 0, 1, 0, row) for row in range(6)]
        two = type("Two", (), {"num_processes": 2, "process_index": 0})()
        monkeypatch.setattr(trained, "processes", two)
        monkeypatch.setattr(gradients_module, "processes", lambda: two)
        monkeypatch.setattr(module, "gather_object", lambda rows: rows + others)

        def reduced(value: Tensor, reduction: str) -> Tensor:
            both = value + theirs.flatten()
            return both if reduction == "sum" else both / 2

        monkeypatch.setattr(gradients_module, "reduce", reduced)
    ends: list[int] = []
    loss = partial(objective, policy, make_sampler())
    learned = trained.learn([found], loss, index=0, tick=lambda *_: ends.append(len(objective.noises)))
    shares = [objective.noises[low:high] for low, high in zip([0, *ends[:-1]], ends, strict=True)]
    gradients = [sum((noise.sum(0) for noise in share), torch.zeros(LATENT_SHAPE)) / 4 + theirs for share in shares]
    assert len(gradients) == 3
    assert max(gradient.norm().item() for gradient in gradients) > 10
    # Adam hides a factor of the gradient, the norms do not.
    assert learned.grad_norms == pytest.approx([gradient.norm().item() for gradient in gradients], rel=1e-5)
    expected = adamw(gradients, start, rate=0.1, decay=decay)
    torch.testing.assert_close(policy.adapter["shift"].detach().double(), expected, rtol=2e-5, atol=1e-6)


# Gradients that are not finite


class Spoiled:
    """The default objective with a fault in some updates, by their number from 0."""

    def __init__(self, fault: Callable[[Tensor, Tensor], Tensor], *updates: int) -> None:
        self.fault = fault
        self.updates = updates
        self.num = 0

    def __call__(self, policy: ShiftPolicy, sampler: DDIM, batch: StepComparisons) -> tuple[Tensor, Metrics]:
        losses, metrics = stepwise_loss(Stepwise(), policy, sampler, batch)
        return (self.fault(losses, policy.adapter["shift"]) if self.num in self.updates else losses), metrics


def no_loss(losses: Tensor, _: Tensor) -> Tensor:
    return losses * math.nan


def no_gradient(losses: Tensor, shift: Tensor) -> Tensor:
    """Finite losses: the derivative of a root at 0 is infinite."""
    return losses + (shift - shift.detach()).sum().abs().sqrt()


def huge_gradient(losses: Tensor, shift: Tensor) -> Tensor:
    """Every entry is finite, the norm is not."""
    return losses + 1e30 * (shift - shift.detach()).sum()


def raised(losses: Tensor, _: Tensor) -> Tensor:
    raise NotFinite("the prediction of the UNet at timestep 501: 1 of 3 are not finite numbers; try this")


def spoiled_trainer(fault: Any, *updates: int, **training: Any) -> Trainer:
    spoiled = Spoiled(fault, *updates)
    trainer = make_trainer(objective=spoiled, train_batch=64, **training)

    def counted(phase: str, done: int, total: int) -> None:
        spoiled.num = done if phase == "train" else 0

    return trainer, counted


FAULTS = {"loss": no_loss, "gradient": no_gradient, "norm": huge_gradient, "prediction": raised}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_update_that_is_not_finite_is_skipped_and_counted(fault: str) -> None:
    """The run is, bit by bit, one in which that update's comparisons do not exist."""
    trainer, tick = spoiled_trainer(FAULTS[fault], 4)
    states: list[Any] = []

    def looked(phase: str, done: int, total: int) -> None:
        tick(phase, done, total)
        states.append(trainer.state())

    row = trainer.round(looked)
    before, after = states[-7:-5]  # after the 4th of 10 updates and after the 5th, which is spoiled
    for name in ("adapter", "ema", "optimizer", "num_updates"):
        assert_same(getattr(after, name), getattr(before, name))
    assert (row["skipped"], row["updates"], row["comparisons"]) == (1, 9, 64)
    assert (trainer.num_updates, trainer.state().num_skipped) == (9, 1)
    assert 64 - 7 <= trainer.num_comparisons <= 64 - 6
    assert all(tensor.isfinite().all() for tensor in (*trainer.policy.adapter.values(), *trainer.policy.ema.values()))
    assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("loss", "^the loss: .* not finite numbers; training has diverged: .* lower training.learning_rate"),
        ("gradient", "^the gradient: .* lower training.learning_rate"),
        ("prediction", "^the prediction of the UNet at timestep 501: .*; try this"),
    ],
)
def test_a_run_whose_updates_are_never_finite_again_stops_and_says_where_it_began(fault: str, named: str) -> None:
    trainer, tick = spoiled_trainer(FAULTS[fault], *range(5, 10), max_skipped=3)
    with pytest.raises(Diverged, match=rf"{named}.* \(3 updates in a row were skipped .*max_skipped\)") as caught:
        trainer.round(tick)
    assert "fp16" not in str(caught.value)
    assert "checkpoint" not in str(caught.value)
    assert trainer.num_updates == 5
    batch = caught.value.batch
    assert (batch["round"], batch["update"]) == (1, 8)
    assert len(batch["ids"]) == len(batch["batches"][0]["step"]) in (6, 7)
    assert_same(batch["adapter"], {"shift": trainer.policy.adapter["shift"].detach()})


def test_before_any_update_the_learning_rate_is_not_blamed() -> None:
    trainer, tick = spoiled_trainer(no_loss, *range(10), max_skipped=2)
    with pytest.raises(Diverged, match="no update was made yet: check the model's files") as caught:
        trainer.round(tick)
    assert "learning_rate" not in str(caught.value)


def test_skips_apart_from_each_other_do_not_stop_a_run() -> None:
    trainer, tick = spoiled_trainer(no_loss, 1, 3, 5, 7, max_skipped=2)
    assert trainer.round(tick)["skipped"] == 4


def test_a_step_that_leaves_weights_that_are_not_finite_stops_at_once() -> None:
    trainer = make_trainer(learning_rate=9e14, weight_decay=9e14, rollout_role="ema")
    trainer.policy.load(adapter={"shift": torch.full(LATENT_SHAPE, 1e20)}, ema={"shift": torch.zeros(LATENT_SHAPE)})
    with pytest.raises(Diverged, match=r"^the adapter: .*lower training.learning_rate"):
        trainer.round()


def test_a_checkpoint_with_weights_that_are_not_finite_is_refused() -> None:
    trainer = make_trainer()
    state = trainer.state()
    state.ema["shift"][0] = math.nan
    with pytest.raises(NotFinite, match=r"^checkpoint: its ema"):
        trainer.restore(state)


# Loss scaling


def scaled_trainer(factor: float, **given: Any) -> Trainer:
    """A loss whose gradient passes through fp16, where it overflows under a scale above 65504 / factor."""

    def objective(policy: ShiftPolicy, sampler: DDIM, batch: StepComparisons) -> tuple[Tensor, Metrics]:
        losses, metrics = stepwise_loss(Stepwise(), policy, sampler, batch)
        shift = policy.adapter["shift"].half()
        return losses + (factor * (shift - shift.detach())).float().sum(), metrics

    return make_trainer(objective=objective, loss_scaling=True, **given)


def test_the_search_for_a_loss_scale_moves_no_average_and_counts_no_update() -> None:
    """The scale begins at 65536; with the factor 8 it overflows down to 2 ** 13."""
    trainer = scaled_trainer(8.0, train_batch=64, max_skipped=1)
    states: list[Any] = []
    row = trainer.round(lambda phase, *_: states.append(trainer.state()) if phase == "train" else None)
    assert (row["skipped"], row["updates"], row["loss_scale"]) == (4, 6, 2.0**12)
    for state in states[:4]:
        assert_same(state.ema, {"shift": torch.zeros(LATENT_SHAPE)})
        assert state.num_updates == 0
        assert not state.optimizer["state"]
    assert states[-1].num_updates == 6
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_loss_scaling_changes_no_update() -> None:
    scaled, plain = make_trainer(loss_scaling=True), make_trainer()
    rows = [trainer.round() for trainer in (scaled, plain)]
    assert (rows[0]["loss_scale"], rows[1]["loss_scale"]) == (65536.0, None)
    torch.testing.assert_close(scaled.policy.adapter["shift"], plain.policy.adapter["shift"], rtol=1e-5, atol=1e-7)


def test_a_loss_that_no_scale_makes_finite_stops_the_run() -> None:
    trainer = scaled_trainer(math.inf, max_skipped=2)
    with pytest.raises(Diverged, match=r"^the loss: .* fp16 overflows above 65504: .*base.precision bf16 or fp32"):
        trainer.round()


def test_a_gradient_that_no_scale_makes_finite_stops_the_run() -> None:
    """16 skips halve the scale to 1; then they count."""
    trainer = make_trainer(
        objective=Spoiled(no_gradient, 0), loss_scaling=True, max_skipped=2, comparisons_per_update=3
    )
    with pytest.raises(Diverged, match=r"^the gradient: .*2 updates in a row"):
        trainer.round()
    assert trainer.updater.num_skipped == 16 + 2
