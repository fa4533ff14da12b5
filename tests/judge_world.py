"""A world in which people prefer bright images to dark ones, for the tests of the judge's training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer
from worlds import make_sampler

from stepalign.core.batch import Conditioning
from stepalign.data import prepared
from stepalign.data.pairs import RawPair
from stepalign.data.prepared import PairEncoder, PreparedPairs, prepare
from stepalign.judges.pairs import FrozenBase, JudgeScorer
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.support.parallel import processes
from stepalign.training.evaluate_judge import score_held_out
from stepalign.training.judge_settings import JudgeTraining
from stepalign.training.judge_trainer import JudgeTrainer

SIZE = (8, 8)
LATENT_SHAPE = (3, 4, 4)
PROMPTS = ["a dot", "a red ring", "two blue squares", "a square", "a yellow ring"]
SMALL = JudgeTraining(
    num_steps=6,
    batch_size=5,
    micro_batch=2,
    learning_rate=1e-3,
    num_warmup_steps=2,
    weight_decay=0.1,
    max_grad_norm=1e6,
    precision="fp32",
)


# Pairs


def an_image(level: float, seed: int = 0) -> Image.Image:
    """Noise around a level between 0 and 1."""
    pixels = level + 0.05 * np.random.default_rng(seed).standard_normal((*SIZE, 3))
    return Image.fromarray((255 * pixels).round().clip(0, 255).astype(np.uint8))


def bright_or_dark(num: int, *, seed: int = 0) -> list[RawPair]:
    """A bright and a dark image in either order; people prefer the bright one, and every fifth pair is a tie."""
    rows = []
    for row in range(num):
        number = 1000 * seed + row
        first_is_bright = bool(np.random.default_rng(number).integers(2))
        some_images = (an_image(0.75, 2 * number), an_image(0.25, 2 * number + 1))
        label = 0.5 if row % 5 == 4 else float(first_is_bright)
        images = some_images if first_is_bright else some_images[::-1]
        rows.append(RawPair(f"row {row}", PROMPTS[row // 2 % len(PROMPTS)], images, label, 1 / (1 + row % 4)))
    return rows


class Rows:
    """A list of rows as a source; remembers where readings began and how many rows they took."""

    def __init__(self, rows: list[RawPair], *, counted: bool = True) -> None:
        self.name = "toy pairs"
        self.fingerprint = "0"
        self.num_rows: int | None = len(rows) if counted else None
        self.starts: list[int] = []
        self.num_read = 0
        self._rows = rows

    def rows(self, start: int = 0) -> Iterator[RawPair]:
        self.starts.append(start)
        for row in self._rows[start:]:
            self.num_read += 1
            yield row


class Encoders:
    """A base model's encoders that remember their work: a prompt becomes its length, an image one of half the size."""

    def __init__(self, *, delay: float = 0.0) -> None:
        self.delay = delay
        """Seconds that every call takes."""
        self.prompts: list[str] = []
        self.images: list[Tensor] = []

    def encode(self, prompts: list[str]) -> Conditioning:
        time.sleep(self.delay)
        self.prompts += prompts
        length = torch.tensor([float(len(prompt)) for prompt in prompts])
        return Conditioning(length[:, None, None].expand(-1, 2, 4), length[:, None] / 3, length[:, None].expand(-1, 6))

    def encode_images(self, images: Tensor) -> Tensor:
        time.sleep(self.delay)
        self.images += list(images)
        return F.avg_pool2d(images, 2)

    def of_pairs(self, **options: Any) -> PairEncoder:
        return PairEncoder(self.encode, self.encode_images, SIZE, **options)


def ready(folder: Path, rows: list[RawPair]) -> PreparedPairs:
    """Rows made ready for training in a folder."""
    return prepare(Rows(rows), folder, encoder=Encoders().of_pairs(), max_bad=1.0)[0]


# The base model and the judge


class Shown(NamedTuple):
    x_t: Tensor
    t: Tensor
    tokens: Tensor
    with_grad: bool


class Base(torch.nn.Module):
    """A base model without noise to remove, x̂0 = x_t / sqrt(abar) · number, that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.shown: list[Shown] = []
        self.decoded: list[tuple[Tensor, bool]] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.shown.append(Shown(x_t, t, cond.tokens, torch.is_grad_enabled()))
        return self.number * x_t

    def decode(self, x_0: Tensor) -> Tensor:
        self.decoded.append((x_0, torch.is_grad_enabled()))
        return x_0

    def frozen(self) -> FrozenBase:
        return FrozenBase(self, self.decode, make_sampler().schedule)


def make_scorer(spm: Path, base: Base | None = None, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A judge from a folder; in float64 nothing but the scores is rounded."""
    model = StepAwarePreferenceModel.from_pretrained(spm).to(dtype)
    return JudgeScorer(model, CLIPTokenizer.from_pretrained(spm), (base or Base()).frozen(), **options)


def make_trainer(scorer: JudgeScorer, pairs: PreparedPairs, *, seed: int = 0, **training: Any) -> JudgeTrainer:
    """A trainer in this world; `training` changes fields of SMALL."""
    return JudgeTrainer(scorer, pairs=pairs, config=replace(SMALL, **training), seed=seed)


def gradients_of_a_step(trainer: JudgeTrainer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Do a step; its row, and the gradients its optimizer saw."""
    seen: dict[str, Tensor] = {}
    names = {id(parameter): name for name, parameter in trainer.scorer.model.named_parameters()}

    def look(*_: object) -> None:
        seen.update({names[id(parameter)]: parameter.grad.clone() for parameter in trainer.parameters})

    handle = trainer.optimizer.register_step_pre_hook(look)
    row = trainer.step()
    handle.remove()
    return row, seen


def without_clock(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


# Processes


@dataclass(frozen=True)
class Work:
    """What one of the processes that share a preparation, an evaluation and a training saw and ended with."""

    num_images: int
    prompts: list[str]
    told: list[str]
    pairs: dict[str, Any]
    manifest: dict[str, Any]
    scores: dict[int, Tensor]
    rows: list[dict[str, Any]]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    calls: dict[str, int]
    alone: dict[str, Tensor]
    """Gradients of a step whose one pair only the first process has."""


def work(folder: Path, spm: Path) -> Work:
    """Make pairs ready in shards of three, one unreadable and one without a label; score them, and train on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "SHARD_ROWS", 3)
        return _work(folder, spm)


def _work(folder: Path, spm: Path) -> Work:
    rows = bright_or_dark(14)
    rows[3] = replace(rows[3], images=(b"damaged", b"damaged"))
    rows[10] = replace(rows[10], label=None)
    told: list[str] = []
    encoders = Encoders(delay=0.1 * processes().process_index)  # so that one process has to wait for the other
    pairs, manifest = prepare(
        Rows(rows), folder / "pairs", encoder=encoders.of_pairs(batch_size=2), max_bad=0.1, tell=told.append
    )
    everything = pairs.take(list(range(len(pairs))))
    scorer = make_scorer(spm, dtype=torch.float64)
    scores = score_held_out(scorer, pairs, timesteps=(501, 0), seed=3, batch_size=2)
    trainer = make_trainer(scorer, pairs)
    scorer.drain_counters()
    first, gradients = gradients_of_a_step(trainer)
    steps = [without_clock(row) for row in (first, trainer.step(), trainer.step())]
    weights = {name: tensor.clone() for name, tensor in scorer.model.state_dict().items()}
    return Work(
        num_images=len(encoders.images),
        prompts=encoders.prompts,
        told=[message.split(":")[0] for message in told],
        pairs={
            "prompts": pairs.prompts,
            "label": pairs.label,
            "weight": pairs.weight,
            "latents": everything.latents,
            "tokens": everything.cond.tokens,
        },
        manifest={"num_rows": manifest.num_rows, "num_unlabelled": manifest.num_unlabelled}
        | {"skipped": [row.where for row in manifest.skipped], "num_bytes": manifest.num_bytes},
        scores=scores,
        rows=steps,
        gradients=gradients,
        weights=weights,
        calls=dict(trainer.calls),
        alone=gradients_of_a_step(make_trainer(make_scorer(spm, dtype=torch.float64), pairs, batch_size=1))[1],
    )
