"""GenEval (Ghosh et al., arXiv 2310.11513): whether an image holds the objects its prompt asks for.

A detector finds objects; rules compare them with what the prompt requires: how many, in which colour, on which side of
another. The rules are those of the published evaluation (djghosh13/geneval, MIT), thresholds included. Numbers depend
on the detector, so its name is part of every result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageOps

from stepalign.support.errors import nearest

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_OBJECTS = 16
"""Most objects of one class that are considered in one image."""
SHRINKAGE = 0.1
"""Share of the two objects' sizes that is subtracted from the distance between their centres."""

# COCO's 80 classes in their order, under GenEval's names; three of them are not COCO's.
# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
COCO_NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO's names of classes that GenEval names otherwise."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """An object that a detector found in an image."""

    class_index: int
    """In `CLASSES`."""
    score: float
    box: Box
    """x0, y0, x1, y1 in pixels; x1 and y1 are the first outside."""
    mask: Bool[np.ndarray, "h w"] | None = None
    """Its pixels, at the image's size."""
    colour: str | None = None
    """The colour of an imported detection; None where a `ColourOf` names it."""


ColourOf = Callable[[Sequence[Detection], str], Sequence[str]]
"""The colours of objects of a class, given by its name, in one image."""


@runtime_checkable
class Detector(Protocol):
    """Finds objects in images."""

    label: str
    """The detector's name, part of every result."""

    def detect(self, images: list[Image.Image]) -> list[list[Detection]]: ...


@runtime_checkable
class ColourClassifier(Protocol):
    """Names the colours of objects in an image."""

    def __call__(self, image: Image.Image, objects: Sequence[Detection], class_name: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Requirement:
    """A number of objects of a class that must be present or, if excluded, absent; with their colour and position."""

    class_index: int
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None
    """A relation, and the index of the requirement that it refers to."""


@dataclass(frozen=True, slots=True)
class GenEvalPrompt:
    """A prompt and the requirements on its images."""

    prompt: str
    tag: str
    """Its task, one of `TASKS`."""
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one image meets its prompt's requirements, and the reasons if not."""

    prompt: str
    tag: str
    correct: bool
    reasons: tuple[str, ...]


def judge_images(
    images: list[Image.Image], prompts: list[GenEvalPrompt], *, detector: Detector, colours: ColourClassifier
) -> list[Verdict]:
    """The verdict on each image of a batch; colours are classified only where a prompt names one."""
    upright = [ImageOps.exif_transpose(image) for image in images]
    found = detector.detect(upright)
    return [
        judge_image(prompt, objects, partial(colours, image))
        for prompt, objects, image in zip(prompts, found, upright, strict=True)
    ]


def judge_image(prompt: GenEvalPrompt, detections: Sequence[Detection], colours: ColourOf) -> Verdict:
    """Compare the detections in an image with its prompt's requirements; every one must hold.

    Of a class, only as many of the most confident objects are counted as the prompt asks for: a fifth dog spoils "four
    dogs", which excludes five, and does not spoil "a dog".
    """
    objects = confident(detections, COUNTING_THRESHOLD if prompt.tag == "counting" else THRESHOLD)
    matched: list[list[Detection] | None] = []
    reasons = []
    for requirement in prompt.include:
        candidates = objects.get(requirement.class_index, [])[: requirement.count]
        problem = _problem(requirement, candidates, matched, colours)
        matched.append(candidates if problem is None else None)
        if problem is not None:
            reasons.append(problem)
    for requirement in prompt.exclude:
        num = len(objects.get(requirement.class_index, []))
        if num >= requirement.count:
            reasons.append(f"{CLASSES[requirement.class_index]}: fewer than {requirement.count} wanted, {num} found")
    return Verdict(prompt.prompt, prompt.tag, not reasons, tuple(reasons))


def confident(detections: Sequence[Detection], threshold: float) -> dict[int, list[Detection]]:
    """By class, the detections above a threshold, by falling confidence and at most `MAX_OBJECTS`.

    Of equal scores the one detected later is first; the published evaluation does not define the order.
    """
    objects: dict[int, list[Detection]] = {}
    for index in np.argsort([found.score for found in detections], kind="stable")[::-1]:
        found = detections[int(index)]
        if found.score > threshold:
            objects.setdefault(found.class_index, []).append(found)
    return {class_index: several[:MAX_OBJECTS] for class_index, several in objects.items()}


def relations(box: Box, target: Box) -> set[str]:
    """The position of a box relative to another: none, one or two of `RELATIONS`.

    The offset between the centres, each component shortened by a tenth of the two boxes' sizes, not beyond zero;
    divided by its original length, a component above one half counts.
    """
    one, other = np.array(box).reshape(2, 2), np.array(target).reshape(2, 2)
    offset = one.mean(0) - other.mean(0)
    sizes = np.abs(one[1] - one[0]) + np.abs(other[1] - other[0])
    shortened = np.maximum(np.abs(offset) - SHRINKAGE * sizes, 0) * np.sign(offset)
    if (np.abs(shortened) < 1e-3).all():
        return set()
    x, y = shortened / np.linalg.norm(offset)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, value in holds.items() if value}


def given_colours(objects: Sequence[Detection], class_name: str) -> list[str]:
    """The colours that came with imported detections; raises ValueError where one did not."""
    named = [found.colour for found in objects]
    if any(colour is None for colour in named):
        raise ValueError(f"a detected {class_name} has no colour; import colours with the detections, or classify them")
    return [colour for colour in named if colour is not None]


def parse_prompt(row: Mapping[str, Any], where: str) -> GenEvalPrompt:
    """A prompt from a row of GenEval's metadata: `tag`, `prompt`, `include` and perhaps `exclude`.

    Raises ValueError with the row's place for a task, class, colour or relation that GenEval does not have.
    """
    prompt, tag = row.get("prompt"), row.get("tag")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where} has no text under 'prompt'")
    if tag not in TASKS:
        raise ValueError(f"{where}: tag must be one of {', '.join(TASKS)}; got {tag!r}")
    parts = []
    for name in ("include", "exclude"):
        clauses = row.get(name, [])
        if not isinstance(clauses, list) or not all(isinstance(clause, Mapping) for clause in clauses):
            raise ValueError(f"{where}: {name} must be a list of objects")
        parts.append(tuple(_requirement(clause, number, where) for number, clause in enumerate(clauses)))
    if not parts[0]:
        raise ValueError(f"{where}: include names no object")
    return GenEvalPrompt(prompt, tag, *parts)


def class_index(name: object, where: str) -> int:
    """The index of a class in `CLASSES` by GenEval's or COCO's name; raises ValueError for any other."""
    known = COCO_NAMES.get(name, name) if isinstance(name, str) else name
    if known not in CLASSES:
        hint = nearest(name, CLASSES) if isinstance(name, str) else ""
        raise ValueError(f"{where}: there is no class {name!r} among COCO's 80{hint}")
    return CLASSES.index(str(known))


def _problem(
    requirement: Requirement,
    candidates: list[Detection],
    matched: list[list[Detection] | None],
    colours: ColourOf,
) -> str | None:
    """The reason why a requirement is not met; "" where it is."""
    name, count = CLASSES[requirement.class_index], requirement.count
    if len(candidates) < count:
        return f"{name}: {count} wanted, {len(candidates)} found"
    if requirement.colour is not None:
        named = list(colours(candidates, name))
        if len(named) != len(candidates) or not set(named) <= set(COLOURS):
            raise ValueError(f"{len(candidates)} objects need as many colours of {', '.join(COLOURS)}; got {named}")
        if named.count(requirement.colour) < count:
            return f"{name}: {count} {requirement.colour} wanted, found {', '.join(named)}"
    if requirement.position is not None:
        relation, group = requirement.position
        targets = matched[group]
        if targets is None:
            return f"{name}: wanted {relation} what was not found"
        for one in candidates:
            for target in targets:
                seen = relations(one.box, target.box)
                if relation not in seen:
                    place = " and ".join(sorted(seen)) or "neither side of"
                    return f"{name}: wanted {relation} {CLASSES[target.class_index]}, found {place} it"
    return None


def _requirement(clause: Mapping[str, Any], number: int, where: str) -> Requirement:
    count, colour, position = clause.get("count"), clause.get("color"), clause.get("position")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{where}: count must be a whole number from 1, got {count!r}")
    if colour is not None and colour not in COLOURS:
        raise ValueError(f"{where}: color must be one of {', '.join(COLOURS)}; got {colour!r}")
    if position is None:
        return Requirement(class_index(clause.get("class"), where), count, colour)
    if not isinstance(position, list) or len(position) != 2 or position[0] not in RELATIONS:
        raise ValueError(f"{where}: position must be [one of {', '.join(RELATIONS)}; a number], got {position!r}")
    relation, group = position
    if not isinstance(group, int) or isinstance(group, bool) or not 0 <= group < number:
        raise ValueError(f"{where}: position must refer to an object before it, counted from 0; got {group!r}")
    return Requirement(class_index(clause.get("class"), where), count, colour, (relation, group))
