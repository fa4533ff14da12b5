"""`stepalign evaluate`: score the images of a folder or of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepalign.cli.command import Command
from stepalign.cli.generation_arguments import MEMORY, MODEL, OUTSIDE, add_prompt_arguments, generate_images

DETECTOR, COLOURS = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"
CMMD = "openai/clip-vit-large-patch14-336"
"""As in `scorers`, whose modules are slow to import; a test compares the two."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign evaluate`."""
    add = parser.add_argument
    add("folder", type=Path, help="images with manifest.jsonl; with --model they are generated first")
    add("--model", default=None, help=f"generate the images with this model: {MODEL}")
    add("--scorers", nargs="+", default=[], metavar="NAME[=PATH]", help="names of scorers, or NAME=PATH of weights")
    add("--name", default=None, help="name of these images in tables (the folder's)")
    add("--scoring-batch", type=int, default=16, help="images scored at once (%(default)s)")
    add("--wrong-prompts", action="store_true", help="also score every image with another image's prompt")
    add("--features", default=None, help="CLIP or DINOv2, folder or hub id, for diversity and KID")
    add("--reference", type=Path, default=None, help="folder of other images, to measure the drift from")
    add("--cmmd", nargs="?", const=CMMD, default=None, help="CMMD to the reference, by this CLIP (%(const)s)")
    add("--geneval", action="store_true", help="GenEval, for images of its prompts")
    add("--detector", default=DETECTOR, help="GenEval's detector, or a .jsonl of detections (%(default)s)")
    add("--colours", default=COLOURS, help="GenEval's CLIP for colours (%(default)s)")
    add("--device", default=None, help="device of the scorers (a GPU if there is one)")
    add("--allow-outside", action="store_true", help=OUTSIDE)
    add_prompt_arguments(parser, required=False)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Score the images of a folder, generated first where a model is given."""
    from rich.console import Console

    from stepalign.cli.console import progress_bars, quieten, show_results

    quieten()
    from stepalign.data.manifest import MANIFEST
    from stepalign.evaluation.image_sets import ImageSets
    from stepalign.evaluation.scoring import Scoring, check_scoring, evaluate_folder
    from stepalign.scorers.geneval.files import write_geneval_manifest
    from stepalign.support.parallel import processes

    sets = ImageSets(
        features=arguments.features,
        reference=arguments.reference,
        cmmd=arguments.cmmd,
        geneval=arguments.geneval,
        detector=arguments.detector,
        colours=arguments.colours,
        batch_size=arguments.scoring_batch,
        allow_outside=arguments.allow_outside,
    )
    scoring = Scoring(
        tuple(arguments.scorers),
        batch_size=arguments.scoring_batch,
        wrong_prompts=arguments.wrong_prompts,
        sets=sets,
        device=arguments.device or str(processes().device),
    )
    check_scoring(scoring)
    _check_generation(arguments)
    if arguments.model is not None:
        generate_images(arguments, arguments.folder)
    if not processes().is_main_process:
        return 0
    if arguments.geneval and not (arguments.folder / MANIFEST).is_file():
        write_geneval_manifest(arguments.folder)  # GenEval's own layout
    with progress_bars(rounds=False) as bars:
        results = evaluate_folder(arguments.folder, scoring, name=arguments.name, watcher=bars)
    show_results(results, Console())
    print(arguments.folder / "results.md")
    return 0


def _check_generation(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a model without prompts, and for prompts or sampling settings without a model."""
    chosen = {"--prompts": arguments.prompts, "--num-prompts": arguments.num_prompts}
    chosen |= {"--prompt-folder": arguments.prompt_folder}
    given = [*arguments.fields, *(option for option, value in chosen.items() if value is not None)]
    if arguments.model is None and given:
        raise ValueError(f"{' '.join(given)}: settings of generated images, which need --model")
    if arguments.model is not None and arguments.prompts is None:
        raise ValueError("prompts: --model generates images, and needs --prompts")


EVALUATE = Command(
    "evaluate",
    "evaluate",
    "score the images of a folder, or of a model",
    add_arguments,
    run_evaluate,
    output=lambda arguments: arguments.folder,
    takes_fields=True,
    resumable=True,
    memory_advice=f"a smaller --scoring-batch; with --model, {MEMORY}",
)
