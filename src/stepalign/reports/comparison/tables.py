"""The tables and histograms of a comparison, as rows of text."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from stepalign.reports.page import decimals, difference_row, fixed, spread
from stepalign.reports.sampling_record import sampling_of_generation, sampling_words
from stepalign.support.json_text import flatten

HALF_BINS = 12
"""Bars of a histogram on either side of 0, at most."""


def score_digits(summary: dict[str, Any]) -> dict[str, int]:
    """Significant decimals by scorer: two digits of its narrowest paired interval."""
    widths: dict[str, list[float]] = {scorer: [] for scorer in summary["scorers"]}
    for row in summary["pairs"]:
        widths[row["scorer"]].append(spread(row["interval"]))
    return {
        scorer: decimals(min((width for width in each if width > 0), default=0.0)) for scorer, each in widths.items()
    }


def best_models(summary: dict[str, Any], scorer: str) -> list[str]:
    """The best and second-best model by a scorer, as far as the paired intervals against the next exclude 0."""
    means = {model: row["mean"] for model, row in summary["scores"][scorer].items()}
    order = sorted(means, key=lambda model: -means[model])
    ahead = []
    for better, worse in itertools.pairwise(order[:3]):
        for row in summary["pairs"]:
            if row["scorer"] == scorer and {row["base"], row["other"]} == {better, worse}:
                low, high = row["interval"]
                ahead.append((low > 0 or high < 0) and means[better] > means[worse])
    return order[: len(list(itertools.takewhile(bool, ahead)))]


def score_table(summary: dict[str, Any], digits: dict[str, int]) -> list[dict[str, Any]]:
    """A row per model, a cell per scorer: its mean, the interval, and "best", "second" or nothing."""
    leaders = {scorer: best_models(summary, scorer) for scorer in summary["scorers"]}
    rows = []
    for model in summary["models"]:
        cells = []
        for scorer, table in summary["scores"].items():
            mark = dict(zip(leaders[scorer], ("best", "second"), strict=False)).get(model, "")
            cells.append(
                (scorer, fixed(table[model]["mean"], digits[scorer]), _ends(table[model], digits[scorer]), mark)
            )
        rows.append({"name": model, "cells": cells})
    return rows


def pair_rows(summary: dict[str, Any], pair: tuple[str, str], digits: dict[str, int]) -> list[dict[str, Any]]:
    """The lines of the table of differences of two models, one per scorer."""
    rows = []
    for row in summary["pairs"]:
        if (row["base"], row["other"]) == pair:
            scorer, means = row["scorer"], summary["scores"][row["scorer"]]
            rate, (low, high) = 100 * row["win_rate"], row["win_interval"]
            won = [f"{fixed(rate, 1)} %", f"{fixed(100 * low, 1)} to {fixed(100 * high, 1)}"]
            cells = [[fixed(means[model]["mean"], digits[scorer])] for model in pair]
            cells += [won, [p_text(row["p_holm"]), f"alone {p_text(row['p_value'])}"]]
            changed = {"difference": row["difference"], "interval": row["interval"], "digits": digits[scorer]}
            rows.append(difference_row(scorer, cells, **changed))
    return rows


def any_text_lines(summary: dict[str, Any], pair: tuple[str, str], digits: dict[str, int]) -> list[str]:
    """Sentences on the share of two models' difference that is independent of the prompt, one per scorer."""
    lines = []
    for row in summary["any_text"]:
        if (row["base"], row["other"]) == pair:
            difference, ends = _signed(row, "difference", digits.get(row["scorer"], 2))
            measured = f"{difference} ({ends})"
            side = "gain" if row["difference"] > 0 else "loss"
            if row["share"] is not None:
                share = _share_words(row["share"])
                told = f"{share} of the {side} is independent of the prompt: with other prompts’ texts it is {measured}"
            elif row["interval"][0] <= 0 <= row["interval"][1]:
                told = f"with other prompts’ texts the difference is not significant: {measured}"
            else:
                told = f"with other prompts’ texts the difference is {measured}"
            lines.append(f"{row['scorer']}: {told}.")
    return lines


def _share_words(share: float) -> str:
    if share >= 0.95:
        return "all"
    return "half" if 0.45 <= share < 0.55 else f"{100 * share:.0f} %"


def strength_table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per model, a cell per scorer: its strength and the interval; empty for two models."""
    tables = summary["strengths"].items()
    return [
        {"name": model, "cells": [(scorer, *_signed(table[model], "strength", 2), "") for scorer, table in tables]}
        for model in (summary["models"] if tables else [])
    ]


def category_table(summary: dict[str, Any], pair: tuple[str, str], digits: dict[str, int]) -> list[dict[str, Any]]:
    """A row per category, a cell per scorer: the difference, its interval, and "better", "worse" or nothing."""
    rows: dict[str, dict[str, Any]] = {}
    for found in summary["categories"]:
        if (found["base"], found["other"]) == pair:
            low, high = found["interval"] or (0, 0)
            verdict = "better" if low > 0 else "worse" if high < 0 else ""
            name = f"{found['category']} ({found['num_prompts']})"
            cell = (found["scorer"], *_signed(found, "difference", digits[found["scorer"]]), verdict)
            rows.setdefault(name, {"name": name, "cells": []})["cells"].append(cell)
    return list(rows.values())


def generation_tables(summary: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Generation settings: a row per setting, a cell per model; differing settings first."""
    known = {model: _as_text(values or {}) for model, values in summary["generation"].items()}
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for name in dict.fromkeys(name for values in known.values() for name in values):
        cells = [(model, values.get(name, "–"), "", "") for model, values in known.items()]
        rows[len({cell[1] for cell in cells}) == 1].append({"name": name, "cells": cells})
    return rows


def _as_text(values: dict[str, Any]) -> dict[str, str]:
    """Nested settings as text."""
    rows = {}
    for path, value in flatten(values).items():
        text = "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows[" ".join(path).replace("_", " ")] = text
    return rows


def sampling_lines(summary: dict[str, Any]) -> list[str]:
    """Sampling settings of each model's images, in words; one line where all are equal."""
    told = {
        model: sampling_words(sampling_of_generation(values)) or "sampling settings not recorded"
        for model, values in summary["generation"].items()
    }
    if len(set(told.values())) == 1:
        return [f"Images: {next(iter(told.values()))}."]
    return [f"{model}: {words}." for model, words in told.items()]


def histogram(name: str, gains: Sequence[float], digits: int) -> dict[str, Any]:
    """Histogram of the prompts' differences, with bars around the multiples of a round number.

    Positions are in widths of a bar from the left end of the chart.
    """
    step = _bar_width(max(map(abs, gains)))
    places = np.rint(np.array(gains) / step).astype(int)
    first, last = min(int(places.min()), -1), max(int(places.max()), 1)
    counts = np.bincount(places - first, minlength=last - first + 1).tolist()
    up, down, mean = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), sum(gains) / len(gains)
    fine = max(digits, decimals(5 * step))
    bars = []
    for index, count in enumerate(counts):
        side = "none" if index == -first else "up" if index > -first else "down"
        about = fixed(step * (index + first), fine, sign="+")
        bars.append((index, count, side, f"about {about}: {count} of {len(gains)} prompts"))
    return {
        "name": name,
        "note": f"higher on {up}, equal on {len(gains) - up - down}, lower on {down} of {len(gains)} prompts",
        "mean": fixed(mean, digits, sign="+"),
        "mean_place": mean / step - first + 0.5,
        "zero": -first + 0.5,
        "ends": [fixed(step * end, fine, sign="+") for end in (first, last)],
        "num": len(counts),
        "most": max(counts),
        "bars": [bar for bar in bars if bar[1]],
    }


def _bar_width(reach: float) -> float:
    """A round bin width of which `HALF_BINS` cover the reach; 1 for no reach."""
    if reach == 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(reach / HALF_BINS))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * HALF_BINS >= 0.999 * reach)


def p_text(p: float) -> str:
    """A p-value with the digits that matter."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _ends(row: dict[str, Any], digits: int, sign: str = "-") -> str:
    low, high = row["interval"] or (None, None)
    return f"{fixed(low, digits, sign=sign)} to {fixed(high, digits, sign=sign)}" if low is not None else ""


def _signed(row: dict[str, Any], name: str, digits: int) -> tuple[str, str]:
    return fixed(row[name], digits, sign="+"), _ends(row, digits, "+")
