"""`stepalign plot`: figures of the papers."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepalign.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign plot`, one figure each."""
    figures = parser.add_subparsers(dest="figure", required=True)
    gains = figures.add_parser("gains", allow_abbrev=False, help="gain of the judge's score at every timestep of a run")
    gains.add_argument("run", type=Path, help="directory of the run; gains.png and gains.json are written there")
    gains.add_argument("--num-prompts", type=int, default=64, help="held-out prompts, from the first (%(default)s)")
    gains.set_defaults(plot=plot_gains, output=None)
    weights = figures.add_parser("weights", allow_abbrev=False, help="weight of each timestep under the objectives")
    weights.add_argument("--model", default="miniature", help="model with the noise schedule (%(default)s)")
    weights.add_argument("--num-steps", type=int, default=20, help="sampling steps (%(default)s)")
    weights.add_argument("--output", type=Path, default=Path("weights.png"), help="PNG file to write (%(default)s)")
    weights.set_defaults(plot=plot_weights, run=None)


def run_plot(arguments: argparse.Namespace) -> int:
    """Plot the chosen figure and print its file."""
    from stepalign.cli.console import quieten

    quieten()
    print(arguments.plot(arguments))
    return 0


def plot_gains(arguments: argparse.Namespace) -> Path:
    """Measure and plot the gain of a run at every timestep."""
    from stepalign.cli.console import progress_bars
    from stepalign.runs.gains import FIGURE, measure_gains

    with progress_bars(rounds=False) as bars:
        measure_gains(
            arguments.run,
            num_prompts=arguments.num_prompts,
            tick=lambda done, total: bars.phase("evaluate", done, total),
        )
    return arguments.run / FIGURE


def plot_weights(arguments: argparse.Namespace) -> Path:
    """Plot the weight of each timestep in a model's noise schedule."""
    from stepalign.reports import figures
    from stepalign.runs.assemble import base_model
    from stepalign.runs.checks import check_base
    from stepalign.runs.recipes import Model
    from stepalign.support.files import replacing

    check_base(arguments.model, Model())
    model = base_model(arguments.model, Model(num_steps=arguments.num_steps))
    image = figures.plot_weights(model.sampler(arguments.num_steps))
    with replacing(arguments.output) as temporary:
        temporary.write_bytes(image)
    return arguments.output


PLOT = Command(
    "plot",
    "tools",
    "plot a figure of the papers",
    add_arguments,
    run_plot,
    output=lambda arguments: arguments.run,
    memory_advice="a smaller base.max_batch in the run's recipe, or fewer --num-prompts",
)
