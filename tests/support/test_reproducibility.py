"""MKL's reproducible mode is in force before anything is computed, and whoever switches it off is told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from stepalign.support.reproducibility import processor

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL")
MULTIPLY = "import torch; torch.ones(8, 8) @ torch.ones(8, 8)"
WARN = "from stepalign.support.parallel import processes; processes(); processes()"


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program without the mode of this process; MKL prints what it does."""
    inherited = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    words, given = [sys.executable, "-c", program], {**inherited, "MKL_VERBOSE": "1", **environment}
    return subprocess.run(words, env=given, capture_output=True, text=True, check=True)


@needs_mkl
@pytest.mark.parametrize(
    ("program", "environment", "mode"),
    [
        (f"import stepalign.cli; {MULTIPLY}", {}, "CNR:AUTO,STRICT"),
        (f"import stepalign; {MULTIPLY}", {"MKL_CBWR": "COMPATIBLE"}, "CNR:COMPATIBLE"),
    ],
)
def test_mkl_computes_in_the_reproducible_mode_unless_the_user_chose_one(
    program: str, environment: dict[str, str], mode: str
) -> None:
    assert mode in python(program, **environment).stdout


@needs_mkl
@pytest.mark.parametrize(
    ("program", "environment", "part"),
    [
        (f"{MULTIPLY}; {WARN}", {}, "set after torch was loaded"),
        (WARN, {"MKL_CBWR": "AVX2"}, "MKL_CBWR is AVX2"),
        (WARN, {}, ""),
    ],
)
def test_a_run_that_may_not_repeat_its_bits_is_warned_once(
    program: str, environment: dict[str, str], part: str
) -> None:
    errors = python(program, **environment).stderr
    assert errors.count("may not repeat its last bits") == bool(part)
    assert part in errors


@needs_mkl
def test_the_tests_compute_in_the_reproducible_mode() -> None:
    assert "STRICT" in os.environ["MKL_CBWR"]


@needs_mkl
def test_the_record_states_processor_kernels_threads_and_mode() -> None:
    words = processor()
    assert torch.backends.cpu.get_cpu_capability() in words
    assert f"{torch.get_num_threads()} threads" in words
    assert words.endswith(f"MKL mode {os.environ['MKL_CBWR']}")
