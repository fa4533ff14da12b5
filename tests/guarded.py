"""A world for runs under a guard: a network of one projection, and scores that a script decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scored import Notes as AllNotes
from torch import Tensor, nn
from worlds import BrightnessJudge, make_trainer

from stepalign.judges.counted import CountedJudge
from stepalign.miniature.world import split_captions
from stepalign.models.base import BaseModel
from stepalign.models.policy import GuidedNetwork, LoraPolicy
from stepalign.runs import guard, job
from stepalign.runs.assemble import GuardPrompts, Parts
from stepalign.runs.guard import GuardWatch
from stepalign.runs.held_out import measure
from stepalign.runs.recipes import Recipe, load_recipe
from stepalign.support.config import change
from stepalign.support.files import load_state
from stepalign.training.held_out_scores import Generated
from stepalign.training.trainer import Trainer

Row = dict[str, Any]
NUM_PROMPTS = 3
SCRIPT = {
    "judge": [0.0, 1.0, 2.0, 3.0],
    "aesthetic": [0.5, 0.75, 0.375, 0.25],
    "alignment": [0.5, 0.5, 0.75, 1.0],
}
"""Means by round: at round 2 the aesthetic has fallen below the base model's, at round 3 further; 1 was its best."""


class Notes(AllNotes):
    """Those of the guard apart."""

    @property
    def of_guard(self) -> list[str]:
        return [note for note in self.notes if note.startswith("guard")]


def recipe_of(**changes: Any) -> Recipe:
    evaluation = {"prompts": "miniature", "oracles": ["aesthetic", "alignment"], "batch_size": 2}
    watch = {"every": 1, "num_prompts": 2, "action": "stop"}
    settings = {"training": {"num_rounds": 3}, "evaluation": evaluation, "guard": watch}
    return change(change(load_recipe("gradspo-sd15"), settings), changes)


class Mixing(nn.Module):
    """A network of one projection, over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.to_q.weight)

    def forward(self, x_t: Tensor, t: Tensor, *, encoder_hidden_states: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.to_q(x_t.movedim(1, 3)).movedim(3, 1))


def parts_of(model: BaseModel, recipe: Recipe, *, wrap: Any = None, **training: Any) -> Parts:
    """Two steps with the network above, a judge of brightness and two oracles of contrast.

    `training` changes the trainer's settings; `wrap` makes another objective of the default one.
    """
    guided = GuidedNetwork(Mixing(), negative=model.negative(), guidance_scale=2.0)
    policy, judge = LoraPolicy(guided, rank=2, seed=0), CountedJudge(BrightnessJudge(100.0))
    given: dict[str, Any] = {"encode": model.encode, "latent_shape": model.latent_shape, "num_steps": 2}
    given |= {"prompts_per_round": 1, "comparisons_per_update": 1}
    trainer = make_trainer(policy=policy, judge=judge, **(given | training))
    if wrap is not None:
        trainer.objective = wrap(trainer)
    oracles = {"aesthetic": lambda x, _: x.std((1, 2, 3)), "alignment": lambda x, _: -x.std((1, 2, 3))}
    held_out = split_captions()[1][:NUM_PROMPTS]
    first = held_out[: recipe.guard.num_prompts]
    watched = GuardPrompts(first, first, evaluated=True)
    stream = trainer.source.sampling.stream
    return Parts(recipe, model, policy, trainer.sampler, judge, stream, trainer, held_out, oracles, {}, {}, {}, watched)


def scripted(parts: Parts, role: Any, **given: Any) -> Generated:
    """The measurement, with the scores of the script; the reference has those of round 0."""
    found = measure(parts, role, **given)
    spread = torch.arange(len(given["prompts"])) / 8
    now = 0 if role == "reference" else parts.trainer.num_rounds
    return Generated(found.images, {name: SCRIPT[name][now] + spread for name in found.scores})


@contextmanager
def toy_runs(model: BaseModel, **given: Any) -> Iterator[None]:
    """Runs are in this world and write no report; what is given goes to `parts_of`."""
    model = replace(model, latent_shape=(4, 4, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "assemble", lambda recipe: parts_of(model, recipe, **given))
        patch.setattr(job, "candidates_along", lambda *_: [])
        patch.setattr(job, "write_report", lambda *_, **__: None)
        patch.setattr(guard, "measure", scripted)
        yield


ADAPTER = "adapter/pytorch_lora_weights.safetensors"


def rows_of(output: Path, name: str = "guard.jsonl") -> list[Row]:
    read = [json.loads(line) for line in (output / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read]


def without_work(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without the clock and without what was computed."""
    values = {key: value for key, value in summary.items() if key != "timing"}
    return values | {"calls": None}


def saved(output: Path) -> dict[int, dict[str, Any]]:
    """The adapters in guard/ by round."""
    found = {int(path.stem[6:]): load_state(path, guard.KeptAdapter) for path in sorted((output / "guard").iterdir())}
    return {num: {"adapter": kept.adapter, "ema": kept.ema} for num, kept in found.items()}


def interrupt(patch: pytest.MonkeyPatch, place: Any, name: str, call: int, *, after: bool = False) -> None:
    """End the process, as it were, at a call of a function, before or after it has done its work."""
    function, calls = getattr(place, name), []

    def interrupted(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call and not after:
            raise KeyboardInterrupt
        result = function(*given, **options)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    patch.setattr(place, name, interrupted)


MOMENTS = {
    "round 1": (Trainer, "round", 1, False),
    "round 2": (Trainer, "round", 2, False),
    "round 3": (Trainer, "round", 3, False),
    "the guard of round 1": (GuardWatch, "_measure", 2, False),
    "the guard of round 2": (GuardWatch, "_measure", 3, False),
    "before row 2": (guard, "write_text", 3, False),
    "after row 2": (guard, "write_text", 3, True),
    "before the adapter": (GuardWatch, "restore", 1, False),
    "after the adapter": (GuardWatch, "restore", 1, True),
    "before checkpoint 2": (job, "save_run", 2, False),
    "after checkpoint 2": (job, "save_run", 2, True),
    "before the evaluation": (job, "evaluate_run", 1, False),
    "after the evaluation": (job, "evaluate_run", 1, True),
}
"""Where a run is interrupted, at which call, and whether before or after it; measurements count from round 0."""
TOLD = {
    2: "the judge's score is 2 above the base model's while aesthetic is 0.125 (0.125 to 0.125) below the base model's "
    "on held-out prompts, twice; it was best at round 1",
    3: "the judge's score is 3 above the base model's while aesthetic is 0.25 (0.25 to 0.25) below the base model's on "
    "held-out prompts, twice; it was best at round 1",
}
"""What a guard notes of the script, by round."""
