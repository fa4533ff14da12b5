"""A comparison's tables as Markdown."""

from __future__ import annotations

from typing import Any

from stepalign.reports.comparison.tables import (
    any_text_lines,
    category_table,
    pair_rows,
    sampling_lines,
    score_digits,
    score_table,
    strength_table,
)
from stepalign.support.markdown import markdown_text


def comparison_markdown(summary: dict[str, Any]) -> str:
    """The tables of a comparison as Markdown; `summary` is the content of comparison.json."""
    digits, scorers = score_digits(summary), list(summary["scorers"])
    pairs = list(dict.fromkeys((row["base"], row["other"]) for row in summary["pairs"]))
    lines = [f"# {', '.join(markdown_text(model) for model in summary['models'])}", ""]
    lines += [
        f"{summary['num_prompts']:,} prompts, {summary['num_images']:,} images of each model. Intervals are 95 %,"
    ]
    lines += [
        "over prompts. **Bold**: best, its interval against the next excludes 0; _italic_: second best likewise.",
        "",
    ]
    lines += [*map(markdown_text, sampling_lines(summary)), ""]
    lines += _table(
        ["", *scorers],
        [[row["name"], *(_marked(*cell[1:]) for cell in row["cells"])] for row in score_table(summary, digits)],
    )
    for base, other in pairs:
        head = ["", base, other, "difference", "95 % interval", "win rate", "p", "p, Holm"]
        lines += [f"## {markdown_text(other)} against {markdown_text(base)}", ""]
        lines += _table(head, [_pair_line(row) for row in pair_rows(summary, (base, other), digits)])
        told = any_text_lines(summary, (base, other), digits)
        lines += [*(f"- {markdown_text(line)}" for line in told), *([""] if told else [])]
    lines += [
        "A tie is half a win. p is that of a sign-flip test over prompts; Holm's adjusts it for all of the tests here.",
        "",
    ]
    if summary["strengths"]:
        lines += ["## Ranking", "", "Bradley-Terry strengths: log odds of winning against the average model.", ""]
        rows = [[row["name"], *(_marked(*cell[1:]) for cell in row["cells"])] for row in strength_table(summary)]
        lines += _table(["", *scorers], rows)
    for base, other in pairs if summary["categories"] else []:
        table = category_table(summary, (base, other), digits)
        rows = [[row["name"], *(_marked(*cell[1:3]) for cell in row["cells"])] for row in table]
        lines += [
            f"## {markdown_text(other)} against {markdown_text(base)}, by category",
            "",
            *_table(["", *scorers], rows),
        ]
    return "\n".join([*lines, *_provenance(summary)])


def _provenance(summary: dict[str, Any]) -> list[str]:
    """Lines on the scorers used, the ones left out, and the warnings."""
    lines = ["## Scorers", ""]
    for name, record in summary["scorers"].items():
        libraries = ", ".join(f"{library} {version}" for library, version in record["libraries"].items())
        told = [f"{record['weights']} (sha256 {record['sha256']})", record["preprocessing"], record["scale"], libraries]
        lines += [f"- {markdown_text(name)}: {markdown_text('; '.join(told))}"]
    for name, models in summary["left_out"].items():
        lines += [f"- left out: {markdown_text(name)}, which has scored only {markdown_text(', '.join(models))}"]
    warnings = [f"- {markdown_text(warning)}" for warning in summary["warnings"]]
    return [*lines, "", *(["## Warnings", "", *warnings, ""] if warnings else [])]


def _pair_line(row: dict[str, Any]) -> list[str]:
    base, other, (rate, ends), (adjusted, alone) = row["cells"]
    won = f"{rate} ({ends})"
    return [row["name"], *base, *other, row["difference"], row["interval"], won, alone.removeprefix("alone "), adjusted]


def _marked(text: str, interval: str, mark: str = "") -> str:
    sign = {"best": "**", "second": "_"}.get(mark, "")
    return f"{sign}{text}{sign}" + (f" ({interval})" if interval else "")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table whose first line and first column are names; the other cells are numbers, some of them marked."""
    named = [[markdown_text(row[0]), *row[1:]] for row in rows]
    cells = [[markdown_text(name) for name in head], ["---", *["---:"] * (len(head) - 1)], *named]
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]
