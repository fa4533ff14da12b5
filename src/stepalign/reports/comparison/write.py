"""Writing of a comparison page."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from pathlib import Path
from typing import Any

from stepalign.reports.comparison.gallery import ComparedPrompt, card, choose_prompts
from stepalign.reports.comparison.tables import (
    any_text_lines,
    category_table,
    generation_tables,
    histogram,
    pair_rows,
    sampling_lines,
    score_digits,
    score_table,
    strength_table,
)
from stepalign.reports.page import write_page
from stepalign.support.json_text import to_json


def write_comparison_report(path: Path, *, summary: dict[str, Any], prompts: list[ComparedPrompt]) -> None:
    """Write the self-contained page of a comparison to `path` atomically.

    `summary` is the content of comparison.json. Raises ValueError naming an image that cannot be read, and OSError when
    the folder of `path` cannot be written to; an older page is then unchanged.
    """
    models, scorers, digits = summary["models"], list(summary["scorers"]), score_digits(summary)
    pairs = list(dict.fromkeys((row["base"], row["other"]) for row in summary["pairs"]))
    places = [(models.index(base), models.index(other)) for base, other in pairs]
    # pairs with the baseline in full; the other pairs, which come after, in less detail
    first = list(zip(pairs, places, strict=True))[: len(models) - 1]
    gallery = choose_prompts(prompts, [place for _, place in first])
    script = (importlib.resources.files("stepalign.reports") / "templates" / "comparison.js").read_text(
        encoding="utf-8"
    )
    different, same = generation_tables(summary)
    values = {
        "title": f"{pairs[0][1]} against {pairs[0][0]}" if len(models) == 2 else f"{len(models)} models compared",
        "summary": summary,
        "scorers": scorers,
        "sampling": sampling_lines(summary),
        "table": score_table(summary, digits),
        "pairs": [
            (
                base,
                other,
                pair_rows(summary, (base, other), digits),
                any_text_lines(summary, (base, other), digits),
            )
            for base, other in pairs
        ],
        "strengths": strength_table(summary),
        "histograms": [
            (
                *pair,
                [histogram(scorer, [one.gain(scorer, place) for one in prompts], digits[scorer]) for scorer in scorers],
            )
            for pair, place in first
        ],
        "categories": [(*pair, category_table(summary, pair, digits)) for pair, _ in first],
        "choices": [(f"{base} {other}", f"{models[other]} against {models[base]}") for base, other in places],
        "num_shown": len(gallery.prompts),
        "num_random": len(gallery.ranks),
        "images_shown": gallery.num_images,
        "images_each": max(len(prompt.files[0]) for prompt in prompts),
        "cards": [card(prompt, gallery, models, digits, places[0]) for prompt in gallery.prompts],
        "page_data": to_json({"scorers": scorers, "digits": list(digits.values()), "models": models}),
        "different": different,
        "same": same,
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    write_page(path, "comparison.html.j2", values)
