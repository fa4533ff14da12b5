"""What the package offers by name, and that offering it costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import stepalign


def run(*words: str) -> str:
    """What a process of its own prints; it must succeed."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def isort_style(name: str) -> tuple[int, list[str | int]]:
    """SCREAMING_CASE first, then CamelCase, then the rest; numbers within names by value (ruff's RUF022)."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def test_all_is_sorted_and_says_no_name_twice() -> None:
    assert stepalign.__all__ == sorted(set(stepalign.__all__), key=isort_style)


@pytest.mark.parametrize("name", stepalign.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(stepalign, name)
    assert value is not None
    assert getattr(value, "__module__", "stepalign").startswith("stepalign")


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'stepalign' has no attribute 'no_such_name'"):
        _ = stepalign.no_such_name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import stepalign, sys; print(*(name for name in sys.modules if '.' not in name))"
    loaded = set(run("-c", code).split())
    assert "stepalign" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pydantic", "rich"}


def test_the_trainer_needs_neither_diffusers_nor_transformers() -> None:
    code = "import stepalign, sys; stepalign.Trainer; stepalign.RECIPES; print(*sys.modules)"
    page = "import stepalign.reports.judge, stepalign.reports.run; print('matplotlib' in sys.modules)"
    loaded = set(run("-c", f"{code}; {page}").split())
    assert "torch" in loaded
    assert not loaded & {"diffusers", "transformers", "peft"}
    assert "False" in loaded, "only writing a page loads matplotlib"


def test_the_command_line_runs_as_a_module() -> None:
    assert "usage: stepalign" in run("-m", "stepalign", "--help")
