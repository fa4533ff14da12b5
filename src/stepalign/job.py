"""A run from recipe to report, in a directory that says all about it.

recipe.yaml      the resolved recipe; `stepalign train recipe.yaml` runs it again
metrics.jsonl    a row per round
checkpoint.pt    what the same command goes on from
adapter/         pytorch_lora_weights.safetensors, for `pipe.load_lora_weights`
summary.json     held-out scores, base against aligned, with intervals; work done
report.html      all of it to look at
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import yaml

from stepalign.assemble import Parts, assemble
from stepalign.batch import pair
from stepalign.checkpoint import load_state, save_state, write_text
from stepalign.evaluate import Generated, compare, generate
from stepalign.parallel import processes
from stepalign.recipes import Recipe, to_yaml, with_absolute_paths
from stepalign.report import Example, TrajectoryStep, write_report
from stepalign.rollout import rollout
from stepalign.seeding import PromptNoise, Purpose, generator_for

RECIPE, METRICS, CHECKPOINT, ADAPTER = "recipe.yaml", "metrics.jsonl", "checkpoint.pt", "adapter"
SUMMARY, REPORT = "summary.json", "report.html"
NUM_EXAMPLES = 12
VERSIONS = ("stepalign", "torch", "diffusers", "transformers", "peft", "accelerate")


@runtime_checkable
class Watcher(Protocol):
    """Is told how a run gets on."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Part of a round or of the evaluation is done."""
        ...

    def round(self, row: dict[str, Any], total: int) -> None:
        """A round is done; `row` is its line of metrics."""
        ...


class Silence:
    """A watcher that says nothing."""

    def phase(self, name: str, done: int, total: int) -> None: ...

    def round(self, row: dict[str, Any], total: int) -> None: ...


def run(recipe: Recipe, output: str | Path, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Do what a recipe says in a directory of its own and return the summary.

    The same call on an unfinished run's directory goes on from its last checkpoint; on a finished one it only
    returns the summary. In a distributed run the main process evaluates and reports; the others return an empty
    summary when training is done. Raises ValueError, before writing anything, when the recipe cannot be run or the
    directory is another run's.
    """
    recipe, output, watcher = with_absolute_paths(recipe), Path(output), watcher or Silence()
    claim(output, recipe)
    if (output / SUMMARY).is_file():
        return json.loads((output / SUMMARY).read_text())
    parts = assemble(recipe)
    rows = _resume(parts, output)
    _train(recipe, parts, output, rows, watcher)
    if not processes().is_main_process:
        return {}
    start = time.perf_counter()
    parts.model.save_adapter(output / ADAPTER, parts.policy.weights(recipe.export))
    evaluated = _evaluate(recipe, parts, watcher)
    prompt = parts.held_out[0] if parts.held_out else parts.trainer.stream.prompts[0]
    trajectory = follow(recipe, parts, prompt)
    summary = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "num_prompts": len(parts.held_out),
        "scores": compare(*evaluated) if evaluated else {},
        **_work(parts, parts.trainer.seconds + time.perf_counter() - start),
    }
    write_report(
        output / REPORT,
        title=recipe.name,
        recipe=to_yaml(recipe),
        rounds=rows,
        summary=summary,
        examples=_examples(parts.held_out, *evaluated) if evaluated else [],
        prompt=prompt,
        trajectory=trajectory,
    )
    write_text(output / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def claim(output: Path, recipe: Recipe) -> None:
    """Raise ValueError unless the directory can be written and is empty, absent, or of a run of this very recipe."""
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"output: {path} is a file; give a directory")
    nearest = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError as error:
        raise ValueError(f"output: cannot write in {nearest}: {error.strerror}") from error
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / RECIPE).is_file():
        raise ValueError(f"output: {output} holds files of something else; give a new or empty directory")
    theirs, ours = (_flat(yaml.safe_load(text)) for text in ((output / RECIPE).read_text(), to_yaml(recipe)))
    different = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    if different:
        key = min(different)
        raise ValueError(
            f"output: {output} is another run's: its {key} is {theirs.get(key)!r}, this recipe's {ours.get(key)!r}; "
            "give another directory"
        )


def follow(recipe: Recipe, parts: Parts, prompt: str) -> list[TrajectoryStep]:
    """One prompt's trajectory under the trained policy, pool by pool, with decoded candidates."""
    pools, _ = rollout(
        parts.policy.denoiser(recipe.training.sample_with),
        parts.sampler,
        parts.judge,
        cond=parts.model.encode([prompt]),
        prompts=[prompt],
        latent_shape=parts.model.latent_shape,
        noise=PromptNoise([generator_for(recipe.seed, Purpose.EVALUATION, 0)], device=parts.model.device),
        branching=recipe.branching,
    )
    steps = []
    for pool in pools:
        scores = pool.candidates.scores
        _, sure = pair(pool.candidates, rule=recipe.training.pairing, min_gap=recipe.training.min_gap)
        with torch.no_grad():
            images = (parts.model.decode(pool.x_0[0]) / 2 + 0.5).clamp(0, 1).cpu()
        steps.append(
            TrajectoryStep(
                timestep=pool.t_prev,
                images=images,
                scores=scores[0].tolist(),
                best=int(scores[0].argmax()),
                worst=int(scores[0].argmin()),
                followed=int(pool.followed[0]),
                trained=bool(sure[0]),
            )
        )
    return steps


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in values.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows


def _resume(parts: Parts, output: Path) -> list[dict[str, Any]]:
    """Take up the last checkpoint, if any, and return the rows of metrics up to it."""
    if not (output / CHECKPOINT).is_file():
        return []
    parts.trainer.restore(load_state(output / CHECKPOINT))
    lines = (output / METRICS).read_text().splitlines() if (output / METRICS).is_file() else []
    return [json.loads(line) for line in lines[: parts.trainer.num_rounds]]


def _train(recipe: Recipe, parts: Parts, output: Path, rows: list[dict[str, Any]], watcher: Watcher) -> None:
    """Do the remaining rounds; `rows` grows by theirs."""
    trainer, total = parts.trainer, recipe.training.num_rounds
    is_main = processes().is_main_process
    while trainer.num_rounds < total:
        row = trainer.round(watcher.phase)
        rows.append(row)
        watcher.round(row, total)
        if is_main and not (output / RECIPE).is_file():  # not before a round worked, so that a failure leaves nothing
            write_text(output / RECIPE, to_yaml(recipe))
        if is_main and (trainer.num_rounds % recipe.checkpoint_every == 0 or trainer.num_rounds == total):
            write_text(output / METRICS, "".join(json.dumps(entry) + "\n" for entry in rows))
            save_state(trainer.state(), output / CHECKPOINT)


def _evaluate(recipe: Recipe, parts: Parts, watcher: Watcher) -> tuple[Generated, Generated] | None:
    """Held-out prompts drawn by the base and by the aligned model from the same seeds."""
    if not parts.held_out:
        return None
    total, done = 2 * len(parts.held_out), 0

    def tick(num: int) -> None:
        nonlocal done
        done += num
        watcher.phase("evaluate", done, total)

    results = [
        generate(
            parts.policy.denoiser(role),
            parts.sampler,
            parts.judge,
            prompts=parts.held_out,
            encode=parts.model.encode,
            decode=parts.model.decode,
            latent_shape=parts.model.latent_shape,
            metrics=parts.metrics,
            seed=recipe.seed,
            batch_size=recipe.evaluation.batch_size,
            device=parts.model.device,
            tick=tick,
        )
        for role in ("reference", recipe.export)
    ]
    return results[0], results[1]


def _work(parts: Parts, seconds: float) -> dict[str, Any]:
    calls = parts.trainer.calls + Counter(parts.trainer.work("evaluation"))
    texts = {"judge_texts": parts.count_judge_texts(), "base_texts": parts.model.num_encoded}
    return {
        "seconds": round(seconds, 1),
        "training_seconds": round(parts.trainer.seconds, 1),
        "rounds": parts.trainer.num_rounds,
        "updates": parts.trainer.num_updates,
        "comparisons_trained": parts.trainer.num_comparisons,
        "calls": dict(calls) | texts,
        "device": device_name(parts.model.device),
        "versions": {name: version(name) for name in VERSIONS},
    }


def device_name(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _examples(prompts: list[str], base: Generated, aligned: Generated) -> list[Example]:
    """The first held-out prompts, base and aligned."""
    return [
        Example(
            prompts[row],
            base.images[row],
            aligned.images[row],
            {name: values[row].item() for name, values in base.scores.items()},
            {name: values[row].item() for name, values in aligned.scores.items()},
        )
        for row in range(min(NUM_EXAMPLES, len(prompts)))
    ]
