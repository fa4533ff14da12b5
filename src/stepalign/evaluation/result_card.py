"""The result card of a folder of scored images: tables, summary, and the settings to reproduce them.

scores.parquet   a row per image
summary.json     means with 95 % intervals over prompts
results.json     the same with the records of scorers and generation; results.md is the same as Markdown
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch

from stepalign.data.manifest import EVALUATION, GENERATION, ImageRow
from stepalign.data.prompts_cut import cut_words
from stepalign.reports.sampling_record import sampling_of_generation, sampling_words
from stepalign.support.config import public_name
from stepalign.support.digests import values_digest
from stepalign.support.environment import device_name, versions
from stepalign.support.files import replacing, write_text
from stepalign.support.json_text import to_json
from stepalign.support.markdown import code_block, markdown_text
from stepalign.support.parsing import parse_json, read_text
from stepalign.support.statistics import cluster_means, clusters_of, mean_interval

PARQUET, SUMMARY, CARD = "scores.parquet", "summary.json", "results.md"
WRONG = "-wrong-prompt"
"""Suffix of a column with scores under another prompt's text."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of a folder's images by column, a value per image."""

    columns: dict[str, list[float]]
    records: dict[str, dict[str, Any]]
    """The scorer of each column."""

    def add(self, column: str, scores: list[float], record: dict[str, Any]) -> None:
        """Add a column; columns of wrong prompts stay behind the others."""
        self.columns[column], self.records[column] = scores, record
        for name in [name for name in self.columns if name.endswith(WRONG)]:
            self.columns[name], self.records[name] = self.columns.pop(name), self.records.pop(name)

    def remove(self, column: str) -> None:
        """Remove a column."""
        del self.columns[column], self.records[column]


def write_results(
    folder: Path,
    rows: list[ImageRow],
    scored: Scored,
    style: list[dict[str, float]],
    *,
    images: str,
    name: str | None,
    device: str,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the table, the summary and the card of the scores so far, and return the card's values.

    `style` has each image's statistics, `images` is the digest of all images, `more` the set-level metrics.
    """
    columns = scored.columns
    summary: dict[str, Any] = {
        "name": name or folder.resolve().name,
        "num_prompts": len({row.prompt_index for row in rows}),
        "num_images": len(rows),
        "scores": {column: mean_over_prompts(rows, values) for column, values in columns.items()},
        "style": {key: mean_over_prompts(rows, [values[key] for values in style]) for key in style[0]},
    }
    categories = sorted({row.category for row in rows if row.category is not None})
    if categories:
        summary["by_category"] = {category: _of_category(rows, columns, category) for category in categories}
    results = {
        **summary,
        **(more or {}),
        "scorers": scored.records,
        "scores_sha256": {column: values_digest(values) for column, values in columns.items()},
        "prompts_sha256": prompts_sha256(rows),
        "images_sha256": images,
        "generation": read_generation(folder),
        "device": device_name(torch.device(device)),
        "versions": versions(),
    }
    with replacing(folder / PARQUET) as temporary:
        pq.write_table(pa.Table.from_pylist([_table_row(row, columns, i) for i, row in enumerate(rows)]), temporary)
    write_text(folder / SUMMARY, to_json(summary, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / EVALUATION, to_json(results, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / CARD, card(results))
    return results


def prompts_sha256(rows: list[ImageRow]) -> str:
    """The digest of a folder's distinct prompts in the order of their first image."""
    prompts = list({row.prompt_index: row.prompt for row in rows}.values())
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def read_generation(folder: Path) -> dict[str, Any] | None:
    """The folder's generation record, without paths on this machine; raises ValueError when it cannot be read."""
    path = folder / GENERATION
    if not path.is_file():
        return None
    try:
        found = parse_json(read_text(path, path.stem), str(path))
    except ValueError as error:
        raise ValueError(f"{error}; generate the images again, or delete it") from error
    return _public(found) if isinstance(found, dict) else None


def _public(value: Any) -> Any:
    """Plain values without paths on this machine, since a card is read elsewhere."""
    match value:
        case str():
            return public_name(value)
        case list():
            return [_public(item) for item in value]
        case dict():
            return {key: _public(item) for key, item in value.items()}
        case _:
            return value


def _table_row(row: ImageRow, columns: dict[str, list[float]], index: int) -> dict[str, Any]:
    """One image as a row of the Parquet table."""
    return {**asdict(row), **{name: column[index] for name, column in columns.items()}}


def _of_category(rows: list[ImageRow], columns: dict[str, list[float]], category: str) -> dict[str, Any]:
    inside = [index for index, row in enumerate(rows) if row.category == category]
    chosen = [rows[index] for index in inside]
    return {name: mean_over_prompts(chosen, [column[i] for i in inside]) for name, column in columns.items()}


def mean_over_prompts(rows: list[ImageRow], values: list[float]) -> dict[str, Any]:
    """The mean of values, images averaged within their prompt first, and its 95 % interval over distinct prompts.

    One prompt has no interval.
    """
    clusters = clusters_of([row.prompt for row in rows])
    means = cluster_means(np.asarray(values, dtype=np.float64), clusters)
    interval = list(mean_interval(means)) if len(means) > 1 else None
    return {"mean": float(means.mean()), "interval": interval, "num_prompts": len(means)}


def card(results: dict[str, Any]) -> str:
    """The result card as Markdown: the scores, and everything needed to reproduce them."""
    lines = [
        f"# {markdown_text(results['name'])}",
        "",
        f"{results['num_images']} images of {results['num_prompts']} prompts.",
        "",
    ]
    if sampling := sampling_words(sampling_of_generation(results["generation"])):
        lines += [f"Sampled with {sampling}.", ""]
    own = [name for name in results["scores"] if not name.endswith(WRONG)]
    lines += _score_lines(results, own)
    if wrong := [name for name in results["scores"] if name.endswith(WRONG)]:
        lines += ["", "Diagnostics: the same images with other prompts' texts.", "", *_score_lines(results, wrong)]
    lines += ["", "## Scorers", "", "| scorer | weights | SHA-256 | preprocessing |", "|---|---|---|---|"]
    for name, record in results["scorers"].items():
        shown = [markdown_text(text) for text in (name, record["weights"], record["preprocessing"])]
        lines.append(f"| {shown[0]} | {shown[1]} | `{record['sha256'][:16]}` | {shown[2]} |")
    cut = [record["prompts_cut"] for record in results["scorers"].values() if "prompts_cut" in record]
    told = [cut_words(name, num, one["num_prompts"]) for one in cut for name, num in one["cut"].items() if num]
    lines += ["", *(f"- {sentence}" for sentence in dict.fromkeys(told))] if told else []
    lines += ["", "## Style", "", "| statistic | mean (95 % interval) |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {_cell(row)} |" for name, row in results["style"].items()]
    lines += _set_lines(results)
    lines += ["", "## Images", ""]
    lines += [f"- prompts, SHA-256: `{results['prompts_sha256']}`", f"- images: `{results['images_sha256']}`"]
    if results["generation"] is not None:
        lines += ["", code_block(to_json(results["generation"], indent=1, ensure_ascii=False), "json")]
    libraries = ", ".join(f"{library} {number}" for library, number in results["versions"].items())
    lines += ["", f"Scored on {results['device']} with {libraries}."]
    return "\n".join(lines) + "\n"


def _score_lines(results: dict[str, Any], names: list[str]) -> list[str]:
    """A Markdown table of some columns' means."""
    scales = {name: markdown_text(results["scorers"][name]["scale"]) for name in names}
    rows = [f"| {markdown_text(name)} | {_cell(results['scores'][name])} | {scales[name]} |" for name in names]
    return ["| scorer | mean (95 % interval over prompts) | scale |", "|---|---|---|", *rows]


def _set_lines(results: dict[str, Any]) -> list[str]:
    """The set-level metrics as Markdown."""
    lines: list[str] = []
    if "diversity" in results:
        found = results["diversity"]
        lines += ["", "## Diversity of a prompt's images", "", f"By {_network(found['features'])}.", ""]
        lines += [f"- {name.replace('_', ' ')}: {_cell(found[name])}" for name in ("pairwise_distance", "vendi_score")]
    if "drift" in results:
        found = results["drift"]
        lines += [
            "",
            f"## Distance from {markdown_text(found['reference'])}",
            "",
            f"{found['num_images']} images.",
            "",
        ]
        if "kid" in found:
            kid = found["kid"]
            means = f"mean over subsets of {kid['subset_size']}, standard deviation {kid['std']:.5f}"
            lines.append(f"- KID {kid['mean']:.5f} ({means}), of {_network(kid['features'])}")
        if "cmmd" in found:
            lines.append(f"- CMMD {found['cmmd']['value']:.4f}, of {_network(found['cmmd']['features'])}")
    if "geneval" in results:
        found = results["geneval"]
        lines += [
            "",
            f"## {markdown_text(found['name'])}",
            "",
            "| task | right (95 % interval over prompts) | images |",
            "|---|---|---|",
        ]
        for task, row in found["tasks"].items():
            cell = _cell({"mean": row["accuracy"], "interval": row["interval"]})
            lines.append(f"| {task.replace('_', ' ')} | {cell} | {row['num_images']} |")
        if found["overall"] is not None:
            lines.append(
                f"| mean of the tasks | {_cell({'mean': found['overall'], 'interval': found['interval']})} | |"
            )
    return lines


def _network(record: dict[str, Any]) -> str:
    return f"{markdown_text(record['weights'])} (`{record['sha256'][:16]}`; {markdown_text(record['preprocessing'])})"


def _cell(row: dict[str, Any]) -> str:
    if row["interval"] is None:
        return f"{row['mean']:.4f}"
    low, high = row["interval"]
    return f"{row['mean']:.4f} ({low:.4f} to {high:.4f})"
