"""The table of commands: its help, what the help loads, and the settings that its messages name."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

from stepalign.cli import main
from stepalign.cli.table import COMMANDS, find_command, overview
from stepalign.runs.judge_recipes import JUDGE_RECIPES
from stepalign.runs.recipes import RECIPES
from stepalign.support.config import to_plain

HELPS = [["--help"], *([command.name, "--help"] for command in COMMANDS)]
HELPS += [["plot", "weights", "--help"], ["train", "spo-sdxl", "--help"], ["train-judge", "spm-sdxl", "--help"]]
HEAVY = {"torch", "numpy", "transformers", "diffusers", "matplotlib", "PIL"}
PROGRAM = """
import contextlib, io, json, sys
from stepalign.cli import main
shown = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(words)
    shown.append((status, out.getvalue()))
print(json.dumps([shown, sorted(name for name in sys.modules if "." not in name)]))
"""


@pytest.fixture(scope="module")
def helped() -> tuple[dict[str, str], set[str]]:
    """The text of every help by its command line, and the modules loaded for them, in a process of its own."""
    words = [sys.executable, "-c", PROGRAM, json.dumps(HELPS)]
    shown, modules = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert [status for status, _ in shown] == [0] * len(HELPS)
    texts = (" ".join(text.split()) for _, text in shown)
    return dict(zip(map(" ".join, HELPS), texts, strict=True)), set(modules)


def test_help_loads_no_heavy_library(helped: tuple[dict[str, str], set[str]]) -> None:
    assert helped[1] & HEAVY == set()


def test_help_lists_arguments_recipes_and_settings(helped: tuple[dict[str, str], set[str]]) -> None:
    texts = helped[0]
    assert all(f"usage: stepalign {name.split()[0]} " in text for name, text in texts.items() if " " in name)
    assert all(name in texts["train --help"] for name in RECIPES)
    assert all(name in texts["train-judge --help"] for name in JUDGE_RECIPES)
    assert all("--base.guidance_scale NUMBER (5.0)" in texts[f"{name} --help"] for name in ("generate", "evaluate"))
    assert "--scorers NAME[=PATH]" in texts["evaluate --help"]


def test_a_recipes_help_has_every_field_with_its_type_value_and_meaning(
    helped: tuple[dict[str, str], set[str]],
) -> None:
    text = helped[0]["train spo-sdxl --help"]
    assert "--lora_rank INTEGER (64) Rank of the adapter on every attention projection" in text
    assert "--base.max_batch INTEGER|none (none) " in text
    assert "--branching.timestep_range INTEGER INTEGER (0 750) " in text
    assert "--objective.noise max-min|separate (separate) " in text
    assert "--training.learning_rate NUMBER (1e-06)" in helped[0]["train-judge spm-sdxl --help"]
    for recipe, shown in (
        (RECIPES["spo-sdxl"], text),
        (JUDGE_RECIPES["spm-sdxl"], helped[0]["train-judge spm-sdxl --help"]),
    ):
        assert all(f"--{name} " in shown for name in flags(to_plain(recipe)))


def test_the_overview_has_every_command_in_one_group() -> None:
    lines = overview().splitlines()
    headings = [line for line in lines if re.fullmatch("[a-z]+:", line)]
    assert headings == ["align:", "judge:", "evaluate:", "tools:"]
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [command.name for command in COMMANDS]


def flags(plain: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of a recipe's fields."""
    names = []
    for name, value in plain.items():
        names += flags(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return names


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("train", RECIPES["gradspo-sd15"]),
        ("sweep", RECIPES["gradspo-sd15"]),
        ("train-judge", JUDGE_RECIPES["spm-sd15"]),
    ],
)
def test_advice_names_settings_that_exist(command: str, recipe: Any) -> None:
    named = re.findall(r"[a-z]+\.[a-z_]+", find_command(command).memory_advice)
    assert len(named) >= 4
    assert set(named) <= set(flags(to_plain(recipe)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a command is required; `stepalign --help`"),
        (["trian"], "there is no command 'trian' (nearest: train"),
        (["plot"], "`stepalign plot --help`"),
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_the_help_to_read(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert (err[:11], err.count("\n")) == ("stepalign: ", 1)
    assert said in err


def test_env_prints_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"python {platform.python_version()}" in text
    assert f"torch {version('torch')}" in text
    assert all(f"{name} " in text for name in ("stepalign", "diffusers", "transformers", "peft", "accelerate", "cpu:"))
    assert "not installed" not in text
