"""The commands that draw, score and compare pictures: `stepalign generate | evaluate | compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stepalign.cli.console import progress_bars, quieten
from stepalign.support.config import override, parse_flags, require
from stepalign.support.errors import one_line

MODEL_HELP = 'diffusers folder, hub id, single .safetensors file, or "miniature"'
PROMPTS_HELP = (
    "a set by name (miniature, geneval, parti, hpdv2-benchmark, ...), or a .txt, .json, .jsonl, .csv or .tsv file"
)
OUTSIDE = "read images that manifest.jsonl names outside its folder, which is refused otherwise"
DETECTOR, COLOURS = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"
CMMD = "openai/clip-vit-large-patch14-336"
"""As `metrics` has them, which are slow to import; a test holds the two together."""
DRAWING = (
    "how to draw, with the defaults: --num_images 1 (of each prompt) --num_steps 20 --eta 0 --seed 0 --batch_size 8 "
    "--adapters PATH[:SCALE] ... --unet PATH --base.guidance_scale 5 --base.resolution HEIGHT WIDTH "
    "--base.precision fp16 --base.vae PATH --base.config PATH --base.max_batch N"
)


def add_parsers(commands: Any) -> None:
    """Add the three commands to the command line's."""
    generate = commands.add_parser(
        "generate", allow_abbrev=False, help="draw pictures of prompts, a seed for each", epilog=DRAWING
    )
    generate.add_argument("model", help=MODEL_HELP)
    generate.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    evaluate = commands.add_parser(
        "evaluate", allow_abbrev=False, help="score a folder of pictures, or a model's", epilog=DRAWING
    )
    evaluate.add_argument("folder", type=Path, help="with manifest.jsonl; with --model it is drawn first")
    evaluate.add_argument("--model", default=None, help=f"draw the pictures with it: {MODEL_HELP}")
    evaluate.add_argument("--scorers", nargs="+", default=[], metavar="NAME[=PATH]", help="names, or NAME=PATH")
    evaluate.add_argument("--name", default=None, help="what to call these pictures in tables (the folder's name)")
    evaluate.add_argument("--scoring-batch", type=int, default=16, help="pictures scored at once (%(default)s)")
    evaluate.add_argument(
        "--wrong-prompts", action="store_true", help="also score every picture with another prompt's text"
    )
    evaluate.add_argument("--features", default=None, help="CLIP or DINOv2, folder or hub id, for diversity and KID")
    evaluate.add_argument(
        "--reference", type=Path, default=None, help="folder of other pictures, to measure drift from"
    )
    evaluate.add_argument(
        "--cmmd", nargs="?", const=CMMD, default=None, help="CMMD from the reference, by this CLIP (%(const)s)"
    )
    evaluate.add_argument("--geneval", action="store_true", help="GenEval's verdicts on pictures of its prompts")
    evaluate.add_argument("--detector", default=DETECTOR, help="GenEval's, or a .jsonl of detections (%(default)s)")
    evaluate.add_argument("--colours", default=COLOURS, help="the CLIP that names colours (%(default)s)")
    evaluate.add_argument("--device", default=None, help="where scorers compute (a GPU if there is one)")
    evaluate.add_argument("--allow-outside", action="store_true", help=OUTSIDE)
    for command, needed in ((generate, True), (evaluate, False)):
        command.add_argument("--prompts", required=needed, default=None, help=PROMPTS_HELP)
        command.add_argument("--num-prompts", type=int, default=None, help="only the first so many")
        command.add_argument("--prompt-folder", type=Path, default=None, help="where downloaded prompt files lie")
    compare = commands.add_parser(
        "compare", allow_abbrev=False, help="compare folders of scored pictures, with intervals and a report"
    )
    compare.add_argument("folders", type=Path, nargs="+", help="two or more; the first is what the others are held to")
    compare.add_argument("--names", nargs="+", default=None, help="what to call them (as they were evaluated)")
    compare.add_argument("--output", type=Path, default=Path("runs/comparison"), help="folder to write (%(default)s)")
    compare.add_argument("--allow-outside", action="store_true", help=OUTSIDE)


def generate(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Draw pictures of prompts into a folder."""
    quieten()
    record = _draw(arguments, arguments.output, rest)
    if record:
        print(f"{record['num_pictures']} pictures of {record['num_prompts']} prompts in {arguments.output}")
    return 0


def evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Score a folder's pictures, drawn first where a model is given."""
    quieten()
    from stepalign.data.manifest import MANIFEST
    from stepalign.evaluation.image_sets import PictureSets
    from stepalign.evaluation.scoring import Scoring, check_scoring, evaluate_folder
    from stepalign.scorers.geneval.files import write_geneval_manifest
    from stepalign.support.parallel import processes

    sets = PictureSets(
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
    if arguments.model is not None:
        if arguments.prompts is None:
            raise ValueError("prompts: --model draws pictures, and needs --prompts")
        _draw(arguments, arguments.folder, rest)
    elif given := [*rest, *_given(arguments, "prompts", "num_prompts", "prompt_folder")]:
        raise ValueError(f"{' '.join(given)}: these say how to draw pictures, which needs --model")
    if not processes().is_main_process:
        return 0
    if arguments.geneval and not (arguments.folder / MANIFEST).is_file():
        write_geneval_manifest(arguments.folder)  # GenEval's own layout
    with progress_bars(rounds=False) as bars:
        results = evaluate_folder(arguments.folder, scoring, name=arguments.name, watcher=bars)
    show_results(results, Console())
    print(arguments.folder / "results.md")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Compare folders of scored pictures."""
    from stepalign.evaluation.compare import compare_folders, write_comparison

    comparison = compare_folders(arguments.folders, names=arguments.names, allow_outside=arguments.allow_outside)
    write_comparison(comparison, arguments.output)
    print(arguments.output / "report.html")
    return 0


def _given(arguments: argparse.Namespace, *names: str) -> list[str]:
    """Which of these options were given."""
    return [f"--{name.replace('_', '-')}" for name in names if vars(arguments)[name] is not None]


def show_results(results: dict[str, Any], console: Console) -> None:
    """The mean scores of a folder as a table."""
    name = escape(one_line(results["name"]))
    table = Table(title=f"{name}: {results['num_images']} pictures of {results['num_prompts']} prompts")
    for heading in ("score", "mean", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name, row in results["scores"].items():
        interval = "–" if row["interval"] is None else f"{row['interval'][0]:.4f} to {row['interval'][1]:.4f}"
        table.add_row(escape(one_line(name)), f"{row['mean']:.4f}", interval)
    console.print(table)


def _draw(arguments: argparse.Namespace, output: Path, rest: list[str]) -> dict[str, Any]:
    """Draw the pictures that a command asks for."""
    from stepalign.data.prompt_sets import load_prompt_set
    from stepalign.evaluation.generation import Generation, generate_folder
    from stepalign.miniature.world import split_captions

    choice = override(Generation(model=arguments.model), parse_flags(rest))
    folder = arguments.prompt_folder
    require(folder is None or folder.is_dir(), "prompt-folder", folder, "a folder that is there")
    found = load_prompt_set(arguments.prompts, folder=arguments.prompt_folder, own={"miniature": split_captions()[1]})
    require(
        arguments.num_prompts is None or arguments.num_prompts >= 1, "num-prompts", arguments.num_prompts, "at least 1"
    )
    first = slice(arguments.num_prompts)
    categories = None if found.categories is None else found.categories[first]
    with progress_bars(rounds=False) as bars:
        return generate_folder(choice, found.prompts[first], output, categories=categories, watcher=bars)
