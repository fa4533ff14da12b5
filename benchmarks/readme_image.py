"""The image of the README: the first held-out prompts of the demo, base above aligned, from two generated folders.

    stepalign demo --seed 0 --output runs/demo
    stepalign generate miniature --prompts miniature --base.guidance_scale 2 --output runs/base
    stepalign generate miniature --prompts miniature --base.guidance_scale 2 --output runs/aligned \
        --adapters runs/demo/adapter:1.0
    python benchmarks/readme_image.py runs/base runs/aligned
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from stepalign.data.manifest import read_manifest

PAGE = Path(__file__).parents[1] / "docs" / "base-and-aligned.png"
COLUMNS, SCALE, GAP = 12, 2, 4


def main() -> None:
    """Write the image."""
    parser = argparse.ArgumentParser(description="Base above aligned images of the same prompts and seeds.")
    parser.add_argument("folders", type=Path, nargs=2, help="written by `stepalign generate`, base and aligned")
    arguments = parser.parse_args()
    rows = [images(folder) for folder in arguments.folders]
    side = rows[0][0].width + GAP
    canvas = Image.new("RGB", (COLUMNS * side - GAP, len(rows) * side - GAP), "white")
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            canvas.paste(image, (left * side, top * side))
    canvas.save(PAGE, optimize=True)
    print(PAGE)


def images(folder: Path) -> list[Image.Image]:
    """The first images of a folder, enlarged."""
    paths = [folder / row.file for row in read_manifest(folder)[:COLUMNS]]
    opened = [Image.open(path).convert("RGB") for path in paths]
    return [image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST) for image in opened]


if __name__ == "__main__":
    main()
