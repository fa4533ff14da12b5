"""MKL's reproducible mode is in force before anything is computed, and whoever switches it off is told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from stepalign.support import reproducibility
from stepalign.support.reproducibility import mkl_warning, processor

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL")
RUN = "import torch; torch.ones(8, 8) @ torch.ones(8, 8); import stepalign.support.parallel as p; [p.processes()] * 2"


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program without the mode of this process; MKL prints the mode it computes in."""
    inherited = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    words, given = [sys.executable, "-c", program], {**inherited, "MKL_VERBOSE": "1", **environment}
    return subprocess.run(words, env=given, capture_output=True, text=True, check=True)


@needs_mkl
@pytest.mark.parametrize(
    ("environment", "mode", "warning"),
    [({}, "CNR:AUTO,STRICT", ""), ({"MKL_CBWR": "AUTO"}, "CNR:AUTO ", "MKL_CBWR is AUTO")],
)
def test_mkl_computes_in_the_reproducible_mode_unless_the_user_chose_one_and_is_warned_once(
    environment: dict[str, str], mode: str, warning: str
) -> None:
    done = python(f"import stepalign.cli; {RUN}", **environment)
    assert mode in done.stdout
    assert done.stderr.count("may not repeat its last bits") == bool(warning)
    assert warning in done.stderr


@needs_mkl
def test_a_mode_set_after_torch_was_loaded_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    late = "from stepalign.support.reproducibility import _LATE; print(_LATE)"
    loaded = "import sys, types; sys.modules['torch'] = types.ModuleType('torch')"
    assert [python(f"{before}; {late}").stdout for before in ("pass", loaded)] == ["False\n", "True\n"]
    assert mkl_warning() is None or torch.accelerator.is_available()
    monkeypatch.setattr(reproducibility, "_LATE", True)
    assert torch.accelerator.is_available() or "set after torch was loaded" in (mkl_warning() or "")


@needs_mkl
def test_the_record_states_processor_kernels_threads_and_mode() -> None:
    words = processor()
    assert torch.backends.cpu.get_cpu_capability() in words
    assert f"{torch.get_num_threads()} threads" in words
    assert "STRICT" in os.environ["MKL_CBWR"]
    assert words.endswith(f"MKL mode {os.environ['MKL_CBWR']}")
