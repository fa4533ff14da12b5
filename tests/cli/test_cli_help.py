"""What the command line says about itself."""

from __future__ import annotations

import platform
from importlib.metadata import version

import pytest

from stepalign.cli.main import main
from stepalign.runs.recipes import RECIPES


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints, in one line; it must succeed."""
    try:
        status = main([*words])
    except SystemExit as done:
        status = done.code or 0
    assert status == 0
    return " ".join(capsys.readouterr().out.split())


def test_env_prints_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "env")
    assert f"python {platform.python_version()}" in text
    assert f"torch {version('torch')}" in text
    assert all(f"{name} " in text for name in ("stepalign", "diffusers", "transformers", "peft", "accelerate", "cpu:"))
    assert "not installed" not in text


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    assert all(command in text for command in ("demo", "train", "train-judge", "push-judge", "convert-judge", "env"))


def test_train_help_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "train", "--help")
    assert all(name in text for name in RECIPES)


def test_a_recipes_help_shows_every_field_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "train", "gradspo-sd15", "--help")
    text = " ".join(text.replace("│", " ").replace("-\n", "-").split())
    assert "--training.learning" in text
    assert "--branching.num" in text
    assert "Rank of the adapter on every attention projection" in text
    assert "Classifier-free guidance, wherever the model predicts." in text
    assert "Half-width of" in text


def test_a_recipes_help_shows_its_own_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert "6e-05" in shown(capsys, "train", "gradspo-sd15", "--help")
    assert "6e-05" not in shown(capsys, "train", "gradspo-miniature", "--help")


@pytest.mark.parametrize("words", [(), ("trian",), ("env", "--now"), ("demo", "--sed", "1")], ids=str)
def test_a_command_that_makes_no_sense_is_an_error_without_traceback(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("stepalign: ")
    assert err.count("\n") == 1
