"""The model card of a trained judge, from the summary of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from stepalign.support.hub import is_hub_id
from stepalign.support.markdown import code_block, code_span, markdown_text


def model_card(*, name: str, command: str, recipe: str, summary: Mapping[str, Any]) -> str:
    """Markdown with the hub's metadata: base model, data, accuracy by noise level, the command, how to use it.

    `recipe` is the training's recipe as YAML, `summary` its summary.json.
    """
    data, steps, seen = summary["data"], summary["steps"], trained_on(summary)
    metadata = {"library_name": "stepalign", "tags": ["step-aware-preference-model", "text-to-image", "reward-model"]}
    links = {"base_model": summary["start"], "datasets": data["pairs"].partition(" ")[0].rstrip(",").partition("@")[0]}
    metadata |= {key: [value] for key, value in links.items() if is_hub_id(value)}
    blocks = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {markdown_text(name)}",
        f"A step-aware preference model ([SPO](https://arxiv.org/abs/2406.04314)) for {code_span(summary['base'])}: it "
        "scores the decoded x̂0 of a denoising step for a prompt, knowing the timestep. Trained with stepalign, which "
        "loads it; transformers has no model of this type.",
        "```python\nfrom stepalign import StepAwarePreferenceModel\n\n"
        'judge = StepAwarePreferenceModel.from_pretrained("<this folder or repository>")\n```',
        f"## Accuracy\n\nShare of held-out pairs ordered as their labels say ({summary['num_decided']} pairs of "
        f"{markdown_text(data['held_out'])}, ties left out, 95 % intervals), next to {code_span(summary['start'])}, "
        "the model training began with, on the same noisy inputs.",
        _accuracy_table(summary["accuracy"]),
        f"## Training\n\n{steps} steps {seen} ({markdown_text(data['pairs'])}); {data['num_skipped']} of "
        f"{data['num_rows']} rows could not be read. Seed {summary['seed']}, {summary['timing']['device']}, "
        + ", ".join(f"{package} {version}" for package, version in summary["versions"].items())
        + ".",
        code_block(command),
        f"<details><summary>The recipe</summary>\n\n{code_block(recipe, 'yaml')}\n\n</details>",
    ]
    return "\n\n".join(blocks) + "\n"


def trained_on(summary: Mapping[str, Any]) -> str:
    """The pairs of a training, in words: its steps may use fewer than there are, or each of them many times.

    A summary without `num_pairs_drawn`, of an older version, only says how many pairs there were.
    """
    num, drawn = summary.get("num_pairs"), summary.get("num_pairs_drawn")
    if not num:
        return ""
    if drawn is None:
        return f"on {num:,} labelled pairs of images"
    if drawn < num:
        return f"on {drawn:,} of {num:,} labelled pairs of images"
    return f"on {num:,} labelled pairs of images, each seen {drawn / num:.3g} times"


def _accuracy_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| timestep | before training | trained | difference |", "|---|---|---|---|"]
    for row in rows:
        before, after = (_with_interval(row[which]["accuracy"], row[which]["interval"]) for which in ("start", "judge"))
        difference = _with_interval(row["difference"], row["interval"], sign="+")
        lines.append(f"| {row['timestep']} | {before} | {after} | {difference} |")
    return "\n".join(lines)


def _with_interval(value: float | None, interval: list[float], *, sign: str = "-") -> str:
    if value is None:
        return "–"
    return f"{value:{sign}.3f} ({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})"
