"""`stepalign env`: versions and devices."""

from __future__ import annotations

import argparse
import os
import platform

from stepalign.cli.command import Command

PACKAGES = ("stepalign", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`stepalign env` takes no arguments."""


def run_env(arguments: argparse.Namespace) -> int:
    """Print versions and devices."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from stepalign.support.reproducibility import mkl_warning, processor

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} not installed")
    print(f"cpu: {platform.processor() or platform.machine()}, {os.cpu_count()} cores; computes as {processor()}")
    if (warning := mkl_warning()) is not None:
        print(warning)
    if not torch.cuda.is_available():
        print("cuda: none")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}")
    return 0


ENV = Command("env", "tools", "print versions and devices, for bug reports", add_arguments, run_env)
