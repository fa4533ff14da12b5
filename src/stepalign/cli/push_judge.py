"""`stepalign push-judge`: upload a judge."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepalign.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign push-judge`."""
    parser.add_argument("folder", type=Path, help="the judge/ folder of a run")
    parser.add_argument("repository", help="owner/name on the hub; created if need be")
    parser.add_argument("--private", action="store_true", help="create a private repository")


def run_push_judge(arguments: argparse.Namespace) -> int:
    """Upload the folder of a judge and print its address."""
    from stepalign.judges.spm_files import publish

    print(publish(arguments.folder, arguments.repository, private=arguments.private))
    return 0


PUSH_JUDGE = Command(
    "push-judge", "judge", "upload a trained judge to the Hugging Face hub", add_arguments, run_push_judge
)
