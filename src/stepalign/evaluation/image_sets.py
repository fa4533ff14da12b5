"""Set-level metrics of a folder of images: diversity, KID and CMMD against another folder, GenEval."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.data.manifest import ImageRow, read_manifest
from stepalign.data.prompt_sets import load_prompt_set
from stepalign.evaluation.result_card import mean_over_prompts
from stepalign.scorers.diversity import pairwise_distance, vendi_score
from stepalign.scorers.drift import cmmd, cmmd_features, kid
from stepalign.scorers.features import ImageFeatures
from stepalign.scorers.geneval.colour_head import COLOUR_MODEL, ColourHead
from stepalign.scorers.geneval.detection import DETECTOR, Mask2FormerDetector
from stepalign.scorers.geneval.files import read_detections, read_folder_prompts
from stepalign.scorers.geneval.rules import (
    Detection,
    Detector,
    GenEvalPrompt,
    Verdict,
    given_colours,
    judge_image,
    judge_images,
    parse_prompt,
)
from stepalign.scorers.geneval.summary import summarise
from stepalign.support.config import require
from stepalign.support.digests import file_digest, ordered_files_digest
from stepalign.support.images import open_image
from stepalign.support.watcher import Watcher

KID_SUBSET = 1000
SETS = ("diversity", "drift", "geneval")
"""Results of `measure_sets`."""


@dataclass(frozen=True, slots=True)
class ImageSets:
    """Settings of the set-level metrics."""

    features: str | None = None
    """A CLIP or DINOv2, folder or hub id: diversity over each prompt's images, and the KID against a reference."""
    reference: Path | None = None
    """A folder of other images, such as the base model's, to measure the distance from."""
    cmmd: str | None = None
    """The network of CMMD against the reference, openai/clip-vit-large-patch14-336 as published; None for no CMMD."""
    geneval: bool = False
    """Whether to apply GenEval's rules, to images of its prompts."""
    detector: str = DETECTOR
    """A Mask2Former trained on COCO, folder or hub id, or a .jsonl file of imported detections."""
    colours: str = COLOUR_MODEL
    """The CLIP that names colours; imported detections may have their own."""
    batch_size: int = 16
    """Images per batch."""
    allow_outside: bool = False
    """Whether manifests may name files outside their folder."""

    @property
    def anything(self) -> bool:
        """Whether any metric is chosen."""
        return self.geneval or self.features is not None or self.cmmd is not None

    def __post_init__(self) -> None:
        against = self.features or self.cmmd
        require(self.reference is None or bool(against), "reference", self.reference, "given with features or cmmd")
        require(self.cmmd is None or self.reference is not None, "cmmd", self.cmmd, "given with a reference")


def measure_sets(
    folder: Path, rows: list[ImageRow], choice: ImageSets, *, device: str, watcher: Watcher
) -> dict[str, Any]:
    """The chosen metrics, under "diversity", "drift" and "geneval"."""
    found: dict[str, Any] = {}
    reference = [] if choice.reference is None else read_manifest(choice.reference, allow_outside=choice.allow_outside)
    drift: dict[str, Any] = {}
    if choice.features is not None:
        network = ImageFeatures.from_pretrained(choice.features, device=device)
        own = features_of(folder, rows, network, choice.batch_size, watcher)
        if min(Counter(row.prompt_index for row in rows).values()) >= 2:
            found["diversity"] = {**diversity(rows, own), "features": asdict(network.record)}
        else:
            watcher.note("diversity needs at least two images of every prompt; not measured")
        if choice.reference is not None:
            other = features_of(choice.reference, reference, network, choice.batch_size, watcher)
            size = max(2, min(KID_SUBSET, len(own) // 2, len(other) // 2))
            drift["kid"] = {**asdict(kid(own, other, subset_size=size)), "subset_size": size}
            drift["kid"] |= {"features": asdict(network.record)}
    if choice.cmmd is not None and choice.reference is not None:
        network = cmmd_features(choice.cmmd, device=device)
        own = features_of(folder, rows, network, choice.batch_size, watcher)
        other = features_of(choice.reference, reference, network, choice.batch_size, watcher)
        drift["cmmd"] = {"value": cmmd(own, other), "features": asdict(network.record)}
    if drift and choice.reference is not None:
        images = ordered_files_digest([choice.reference / row.file for row in reference])
        found["drift"] = {"reference": choice.reference.resolve().name, "reference_sha256": images}
        found["drift"] |= {"num_images": len(reference), **drift}
    if choice.geneval:
        found["geneval"] = geneval(folder, rows, choice, device=device, watcher=watcher)
    return found


def features_of(
    folder: Path, rows: list[ImageRow], network: ImageFeatures, batch_size: int, watcher: Watcher
) -> Float[Tensor, "n e"]:
    """The features of a folder's images, in the order of its manifest."""
    parts: list[Tensor] = []
    for start in range(0, len(rows), batch_size):
        parts.append(network.extract(_images(folder, rows[start : start + batch_size])))
        watcher.phase("score", sum(map(len, parts)), len(rows))
    return torch.cat(parts)


def diversity(rows: list[ImageRow], features: Float[Tensor, "n e"]) -> dict[str, Any]:
    """Mean pairwise distance and Vendi score of each prompt's images, with intervals over prompts."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.prompt_index, []).append(place)
    sizes = {len(own) for own in places.values()}
    require(len(sizes) == 1, "images of a prompt", sorted(sizes), "equally many for every prompt, for diversity")
    grouped = torch.stack([features[own] for own in places.values()])
    first = [rows[own[0]] for own in places.values()]
    columns = {"pairwise_distance": pairwise_distance(grouped), "vendi_score": vendi_score(grouped)}
    return {name: mean_over_prompts(first, column.tolist()) for name, column in columns.items()}


def geneval(folder: Path, rows: list[ImageRow], choice: ImageSets, *, device: str, watcher: Watcher) -> dict[str, Any]:
    """GenEval's table for images of its prompts, with the records of detector and colour classifier."""
    prompts = geneval_prompts(folder, rows)
    if choice.detector.endswith(".jsonl"):
        found = read_detections(Path(choice.detector), rows)
        verdicts = _given_verdicts(folder, rows, prompts, found, choice, device=device)
        label, records = f"detections of {Path(choice.detector).name}", []
    else:
        detector = Mask2FormerDetector.from_pretrained(choice.detector, device=device)
        head = ColourHead.from_pretrained(choice.colours, device=device)
        verdicts = _verdicts(folder, rows, prompts, detector, head, choice.batch_size, watcher)
        label, records = detector.label, [detector.record, head.record]
    summary = summarise(verdicts, detector=label)
    made_elsewhere = {} if records else {"detections_sha256": file_digest(Path(choice.detector))}
    failures = [
        {"file": row.file, "prompt": row.prompt, "reasons": list(verdict.reasons)}
        for row, verdict in zip(rows, verdicts, strict=True)
        if not verdict.correct
    ]
    return {
        "name": summary.name,
        **asdict(summary),
        "records": list(map(asdict, records)),
        "failures": failures,
    } | made_elsewhere


def geneval_prompts(folder: Path, rows: list[ImageRow]) -> list[GenEvalPrompt]:
    """GenEval's task for each image, from the folder's metadata or its prompt's text.

    Raises ValueError naming a prompt that is not in GenEval.
    """
    if any(path.is_file() for path in folder.glob("*/metadata.jsonl")):
        by_number = read_folder_prompts(folder)
        return [by_number[row.prompt_index] for row in rows]
    known = {row["prompt"]: parse_prompt(row, "GenEval") for row in load_prompt_set("geneval").metadata or []}
    strange = [row.prompt for row in rows if row.prompt not in known]
    if strange:
        raise ValueError(
            f"geneval: {len(strange)} of {len(rows)} images are of prompts that are not GenEval's, the first "
            f"{strange[0]!r}; generate them with --prompts geneval"
        )
    return [known[row.prompt] for row in rows]


def _verdicts(
    folder: Path,
    rows: list[ImageRow],
    prompts: list[GenEvalPrompt],
    detector: Detector,
    head: ColourHead,
    batch_size: int,
    watcher: Watcher,
) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for start in range(0, len(rows), batch_size):
        batch = slice(start, start + batch_size)
        verdicts += judge_images(_images(folder, rows[batch]), prompts[batch], detector=detector, colours=head)
        watcher.phase("score", len(verdicts), len(rows))
    return verdicts


def _given_verdicts(
    folder: Path,
    rows: list[ImageRow],
    prompts: list[GenEvalPrompt],
    found: dict[tuple[int, int], list[Detection]],
    choice: ImageSets,
    *,
    device: str,
) -> list[Verdict]:
    """Verdicts on imported detections, with their own colours or, where they have none, the classifier's."""
    if all(one.colour is not None for objects in found.values() for one in objects):
        return [judge_image(prompt, found[row.key], given_colours) for row, prompt in zip(rows, prompts, strict=True)]
    head = ColourHead.from_pretrained(choice.colours, device=device)
    verdicts = []
    for row, prompt in zip(rows, prompts, strict=True):
        verdicts.append(judge_image(prompt, found[row.key], partial(head, open_image(folder / row.file))))
    return verdicts


def _images(folder: Path, rows: list[ImageRow]) -> list[Image.Image]:
    return [open_image(folder / row.file) for row in rows]
