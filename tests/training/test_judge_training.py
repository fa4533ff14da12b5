"""What a judge's training draws, learns and goes on from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from judge_world import (
    Base,
    bright_or_dark,
    gradients_of_a_step,
    make_scorer,
    make_trainer,
    ready,
    without_clock,
)
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from worlds import assert_same, make_sampler

from stepalign.core.seeding import EpochOrder, Purpose
from stepalign.data.prepared import PreparedPairs
from stepalign.judges.pairs import JudgeScorer, agreement
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.support.files import load_state, save_state
from stepalign.training.evaluate_judge import score_held_out
from stepalign.training.judge_trainer import JudgeState, JudgeTrainer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PreparedPairs:
    return ready(tmp_path_factory.mktemp("pairs"), bright_or_dark(12))


# What is drawn


def shown_to(base: Base) -> tuple[list[int], Tensor]:
    """Timesteps and noisy pairs in the order of their positions."""
    x_t = torch.cat([shown.x_t for shown in base.shown]).unflatten(0, (-1, 2))
    return [t for shown in base.shown for t in shown.t[::2].tolist()], x_t


def noise_of(x_t: Tensor, t: list[int], latents: Tensor) -> Tensor:
    """(x_t - sqrt(abar) x_0) / sqrt(1 - abar)."""
    abar = make_sampler().schedule.alpha_bar(torch.tensor(t))[:, None, None, None, None]
    return (x_t - abar.sqrt() * latents) / (1 - abar).sqrt()


def test_both_images_of_a_pair_get_one_noise_and_every_pair_its_own(
    pairs: PreparedPairs, tiny_spm_folder: Path
) -> None:
    """Two pairs at a time, their images side by side in one batch."""
    base = Base()
    make_trainer(make_scorer(tiny_spm_folder, base), pairs).step()
    assert [len(shown.x_t) for shown in base.shown] == [4, 4, 2]
    assert all(shown.t[::2].equal(shown.t[1::2]) for shown in base.shown)
    order = EpochOrder(len(pairs), seed=0, purpose=Purpose.JUDGE_ORDER)
    batch = pairs.take([order[position] for position in range(5)])
    t, x_t = shown_to(base)
    noise = noise_of(x_t, t, batch.latents)
    torch.testing.assert_close(noise[:, 0], noise[:, 1], rtol=0, atol=1e-4)
    assert len(set(t)) == 5
    assert torch.pdist(noise[:, 0].flatten(1)).min() > 5  # of independent ones: sqrt(2 · 48) = 9.8
    assert noise.square().mean().item() == pytest.approx(1, abs=0.2)
    assert torch.cat([shown.tokens for shown in base.shown])[::2, 0, 0].tolist() == [
        len(prompt) for prompt in batch.prompts
    ]


def test_a_pairs_timestep_and_noise_do_not_depend_on_the_pairs_beside_it(
    pairs: PreparedPairs, tiny_spm_folder: Path
) -> None:
    results = []
    for sizes, steps in (((6, 6), 1), ((6, 1), 1), ((3, 2), 2), ((2, 2), 3)):
        base = Base()
        trainer = make_trainer(make_scorer(tiny_spm_folder, base), pairs, batch_size=sizes[0], micro_batch=sizes[1])
        for _ in range(steps):
            torch.rand(3)
            trainer.step()
        results.append(shown_to(base))
    for t, x_t in results[1:]:
        assert t == results[0][0]
        torch.testing.assert_close(x_t, results[0][1], rtol=0, atol=1e-6)  # added to latents in other batches


def test_timesteps_and_noise_are_decided_by_seed_and_position_not_by_the_data(
    pairs: PreparedPairs, tiny_spm_folder: Path
) -> None:
    few = pairs.select([1, 7, 2])
    results = []
    for data, seed in ((pairs, 0), (few, 0), (few, 1)):
        base = Base()
        make_trainer(make_scorer(tiny_spm_folder, base), data, seed=seed).step()
        order = EpochOrder(len(data), seed=seed, purpose=Purpose.JUDGE_ORDER)
        t, x_t = shown_to(base)
        results.append((t, noise_of(x_t, t, data.take([order[position] for position in range(5)]).latents)))
    assert results[0][0] == results[1][0] != results[2][0]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-4)
    assert (results[1][1] - results[2][1]).abs().mean() > 0.5


def test_timesteps_are_uniform_from_0_to_999(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    """Of 600 draws each tenth has 60 ± 7.3, within four standard deviations."""
    base = Base()
    trainer = make_trainer(make_scorer(tiny_spm_folder, base), pairs, batch_size=600, micro_batch=600)
    trainer.step()
    counts = torch.bincount(torch.tensor(shown_to(base)[0]) // 100, minlength=10)
    assert len(counts) == 10
    assert all(30 <= count <= 90 for count in counts.tolist())


# Precision and memory


def test_gradient_checkpointing_runs_blocks_twice_for_the_same_gradient(
    pairs: PreparedPairs, tiny_spm_folder: Path
) -> None:
    found = []
    for checkpointing in (False, True):
        scorer = make_scorer(tiny_spm_folder)
        runs = {"vision": 0, "text": 0}

        def counted(*_: object, runs: dict[str, int] = runs, tower: str) -> None:
            runs[tower] += 1

        for tower, model in (("vision", scorer.model.vision_model), ("text", scorer.model.text_model)):
            model.encoder.layers[0].layer_norm2.register_forward_hook(partial(counted, tower=tower))
        trainer = make_trainer(scorer, pairs, gradient_checkpointing=checkpointing)
        found.append((*gradients_of_a_step(trainer), runs))
    (row, gradients, runs), (other_row, other_gradients, other_runs) = found
    assert (runs, other_runs) == ({"vision": 3, "text": 1}, {"vision": 6, "text": 2})
    assert row["loss"] == other_row["loss"]
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-5, atol=1e-7)


def test_half_precision_is_for_the_forward_pass_alone(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    full, scorer = make_scorer(tiny_spm_folder), make_scorer(tiny_spm_folder, precision="bf16")
    inside: set[torch.dtype] = set()
    for model in (scorer.model.vision_model, scorer.model.text_model):
        model.encoder.layers[0].mlp.register_forward_hook(lambda *given: inside.add(given[-1].dtype))
    _, expected = gradients_of_a_step(make_trainer(full, pairs))
    row, gradients = gradients_of_a_step(make_trainer(scorer, pairs))
    assert inside == {torch.bfloat16}
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert {weight.dtype for weight in scorer.model.state_dict().values()} == {torch.float32}
    one, other = (torch.cat([tensor.flatten() for tensor in values.values()]) for values in (gradients, expected))
    assert torch.cosine_similarity(one, other, dim=0) > 0.98
    assert not torch.equal(one, other)
    assert row["grad_norm"] > 0


# Learning


def held_out_accuracy(trainer: JudgeTrainer, held_out: PreparedPairs, timestep: int) -> float:
    scores = score_held_out(trainer.scorer, held_out, timesteps=(timestep,), seed=0, batch_size=40)[timestep]
    return agreement(scores, held_out.label).nanmean().item()


def test_training_teaches_a_plain_preference(tmp_path: Path, tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """40 steps of 16 pairs, a fifth of them ties; on 80 other pairs."""
    torch.manual_seed(0)
    model = StepAwarePreferenceModel.from_clip(tiny_clip)
    learnt = ready(tmp_path / "learnt", bright_or_dark(160))
    held_out = ready(tmp_path / "held out", bright_or_dark(80, seed=1))
    scorer = JudgeScorer(model, tokenizer, Base().frozen())
    trainer = make_trainer(scorer, learnt, batch_size=16, micro_batch=16, num_steps=40, learning_rate=3e-3)
    before = held_out_accuracy(trainer, held_out, 251)
    rows = [trainer.step() for _ in range(40)]
    assert before < 0.75
    assert held_out_accuracy(trainer, held_out, 251) > 0.95
    assert sum(row["loss"] for row in rows[:5]) > 1.2 * sum(row["loss"] for row in rows[-5:])


# Going on elsewhere


def test_a_restored_training_ends_bit_identical_to_one_left_alone(
    pairs: PreparedPairs, tiny_spm_folder: Path, tmp_path: Path
) -> None:
    """Five steps of five pairs, cut after two; the twelve pairs begin anew in the third and the fifth."""
    whole, first, second = (make_trainer(make_scorer(tiny_spm_folder), pairs) for _ in range(3))
    expected = [without_clock(whole.step()) for _ in range(5)]
    rows = [without_clock(first.step()) for _ in range(2)]
    save_state(first.state(), tmp_path / "checkpoint.pt")
    torch.rand(3)
    second.restore(load_state(tmp_path / "checkpoint.pt", JudgeState))
    assert second.seconds == first.seconds
    rows += [without_clock(second.step()) for _ in range(3)]
    assert rows == expected
    for name in ("pairs", "num_steps", "calls", "model", "optimizer"):
        assert_same(getattr(second.state(), name), getattr(whole.state(), name))


@pytest.mark.parametrize("changed", ["order", "label", "weight", "prompts"])
def test_a_training_does_not_go_on_with_other_pairs(pairs: PreparedPairs, tiny_spm_folder: Path, changed: str) -> None:
    others = {
        "order": pairs.select([1, 0, *range(2, 12)]),
        "label": replace(pairs, label=1 - pairs.label),
        "weight": replace(pairs, weight=2 * pairs.weight),
        "prompts": replace(pairs, prompts=["a dot"] * 12),
    }
    state = make_trainer(make_scorer(tiny_spm_folder), pairs).state()
    trainer = make_trainer(make_scorer(tiny_spm_folder), others[changed])
    before = trainer.num_steps
    with pytest.raises(ValueError, match=r"data\.pairs: they are not those this run began with"):
        trainer.restore(replace(state, num_steps=7))
    assert trainer.num_steps == before
