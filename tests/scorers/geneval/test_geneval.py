"""GenEval's rules, each worked out by hand: counts, thresholds, ties, colours, and where objects lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stepalign.scorers.geneval.rules import (
    CLASSES,
    COLOURS,
    Detection,
    GenEvalPrompt,
    confident,
    given_colours,
    judge_image,
    judge_images,
    parse_prompt,
    relations,
)

DOG, CAT, CAR = (CLASSES.index(name) for name in ("dog", "cat", "car"))


def found(index: int, score: float = 0.95, *, x: float = 0, y: float = 0, side: float = 10, **more: Any) -> Detection:
    """A square object with its upper left corner at (x, y)."""
    return Detection(index, score, (float(x), float(y), float(x + side), float(y + side)), **more)


def no_colours(objects: Sequence[Detection], name: str) -> list[str]:
    pytest.fail("no colour is asked for")


def prompt_of(tag: str, *include: dict[str, Any], exclude: Sequence[dict[str, Any]] = ()) -> GenEvalPrompt:
    return parse_prompt({"tag": tag, "prompt": "a photo", "include": list(include), "exclude": list(exclude)}, "here")


def dogs(count: int) -> dict[str, Any]:
    return {"class": "dog", "count": count}


def judged(prompt: GenEvalPrompt, *objects: Detection, colours: Any = no_colours) -> tuple[bool, tuple[str, ...]]:
    verdict = judge_image(prompt, list(objects), colours)
    assert verdict.correct == (not verdict.reasons)
    assert (verdict.prompt, verdict.tag) == (prompt.prompt, prompt.tag)
    return verdict.correct, verdict.reasons


# One object and two


def test_one_object_is_enough_and_more_do_no_harm() -> None:
    prompt = prompt_of("single_object", dogs(1))
    assert judged(prompt, found(DOG)) == (True, ())
    assert judged(prompt, found(DOG), found(DOG, x=50), found(CAT)) == (True, ())
    assert judged(prompt, found(CAT)) == (False, ("dog: 1 wanted, 0 found",))
    assert judged(prompt) == (False, ("dog: 1 wanted, 0 found",))


def test_two_objects_must_both_be_there_overlapping_or_not() -> None:
    prompt = prompt_of("two_object", dogs(1), {"class": "cat", "count": 1})
    assert judged(prompt, found(DOG), found(CAT)) == (True, ())
    assert judged(prompt, found(DOG), found(DOG, x=30)) == (False, ("cat: 1 wanted, 0 found",))
    assert judged(prompt) == (False, ("dog: 1 wanted, 0 found", "cat: 1 wanted, 0 found"))


@pytest.mark.parametrize(("score", "correct"), [(0.3, False), (0.300001, True), (0.29, False), (0.89, True)])
def test_a_score_must_be_above_three_tenths(score: float, correct: bool) -> None:
    assert judged(prompt_of("single_object", dogs(1)), found(DOG, score))[0] == correct


# Counting


@pytest.mark.parametrize(("number", "correct"), [(2, False), (3, True), (4, False), (16, False), (20, False)])
def test_a_count_must_be_exact(number: int, correct: bool) -> None:
    prompt = prompt_of("counting", dogs(3), exclude=[dogs(4)])
    verdict, reasons = judged(prompt, *(found(DOG, x=20 * i) for i in range(number)))
    assert verdict == correct
    if number < 3:
        assert reasons == ("dog: 3 wanted, 2 found",)
    elif number > 3:
        assert reasons == (f"dog: fewer than 4 wanted, {min(number, 16)} found",)


@pytest.mark.parametrize(("score", "number"), [(0.9, 2), (0.9001, 3), (0.31, 2)])
def test_only_what_is_above_nine_tenths_is_counted(score: float, number: int) -> None:
    two, three = (prompt_of("counting", dogs(count), exclude=[dogs(count + 1)]) for count in (2, 3))
    objects = [found(DOG), found(DOG, x=30), found(DOG, score, x=60)]
    assert judged(two, *objects)[0] == (number == 2)
    assert judged(three, *objects)[0] == (number == 3)


def test_objects_that_overlap_wholly_are_counted_each() -> None:
    assert judged(prompt_of("counting", dogs(2), exclude=[dogs(3)]), found(DOG), found(DOG))[0]


def test_other_classes_do_not_disturb_a_count() -> None:
    assert judged(prompt_of("counting", dogs(2), exclude=[dogs(3)]), found(DOG), found(CAT), found(DOG))[0]


def test_at_most_sixteen_objects_of_a_class_are_kept_the_surest_first() -> None:
    scores = np.random.default_rng(0).permutation(np.linspace(0.4, 0.99, 30)).tolist()
    kept = confident([found(DOG, score) for score in scores] + [found(CAT, 0.35)], 0.3)
    assert [one.score for one in kept[DOG]] == sorted(scores, reverse=True)[:16]
    assert len(kept[CAT]) == 1


def test_of_equal_scores_the_later_detection_is_first() -> None:
    objects = [found(DOG, 0.8, x=place) for place in (0, 100, 200)]
    assert [one.box[0] for one in confident(objects, 0.3)[DOG]] == [200, 100, 0]


# Colours


def test_a_colour_is_asked_of_the_surest_objects_only() -> None:
    prompt = prompt_of("colors", {"class": "car", "count": 1, "color": "red"})
    asked: list[tuple[list[float], str]] = []

    def colours(objects: Sequence[Detection], name: str) -> list[str]:
        asked.append(([one.score for one in objects], name))
        return ["red" if one.score > 0.9 else "blue" for one in objects]

    assert judged(prompt, found(CAR, 0.5), found(CAR, 0.95), colours=colours)[0]
    assert asked == [([0.95], "car")]
    assert judged(prompt, found(CAR, 0.5), found(CAR, 0.85), colours=colours) == (
        False,
        ("car: 1 red wanted, found blue",),
    )


@pytest.mark.parametrize(
    ("car", "dog", "reasons"),
    [
        ("red", "green", ()),
        ("green", "red", ("car: 1 red wanted, found green", "dog: 1 green wanted, found red")),
        ("red", "blue", ("dog: 1 green wanted, found blue",)),
        ("white", "green", ("car: 1 red wanted, found white",)),
    ],
)
def test_each_of_two_objects_must_have_its_own_colour(car: str, dog: str, reasons: tuple[str, ...]) -> None:
    prompt = prompt_of(
        "color_attr", {"class": "car", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "green"}
    )
    named = {"car": car, "dog": dog}
    assert judged(prompt, found(CAR), found(DOG), colours=lambda objects, name: [named[name]])[1] == reasons


def test_of_two_red_cars_both_must_be_red() -> None:
    prompt = prompt_of("colors", {"class": "car", "count": 2, "color": "red"})
    pair = (found(CAR), found(CAR, x=30))
    assert judged(prompt, *pair, colours=lambda objects, name: ["red", "red"])[0]
    assert not judged(prompt, *pair, colours=lambda objects, name: ["red", "orange"])[0]


def test_no_colour_is_asked_of_what_is_not_there() -> None:
    assert judged(prompt_of("colors", {"class": "car", "count": 1, "color": "red"}), found(DOG))[1] == (
        "car: 1 wanted, 0 found",
    )


@pytest.mark.parametrize("named", [[], ["red", "red"], ["crimson"]])
def test_colours_that_do_not_fit_the_objects_are_refused(named: list[str]) -> None:
    prompt = prompt_of("colors", {"class": "car", "count": 1, "color": "red"})
    with pytest.raises(ValueError, match="1 objects need as many colours of red, orange"):
        judged(prompt, found(CAR), colours=lambda objects, name: named)


def test_imported_colours_are_taken_and_missing_ones_refused() -> None:
    assert given_colours([found(CAR, colour="red"), found(CAR, colour="blue")], "car") == ["red", "blue"]
    with pytest.raises(ValueError, match="a detected car has no colour; import colours"):
        given_colours([found(CAR, colour="red"), found(CAR)], "car")


# Positions: boxes of 10 by 10, so that each component of the offset loses 0.1 · (10 + 10) = 2


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-10, 0, {"left of"}),  # 8/10
        (10, 0, {"right of"}),
        (0, -10, {"above"}),
        (0, 10, {"below"}),
        (-4, 0, set()),  # 2/4 is not above one half
        (-4.1, 0, {"left of"}),  # 2.1/4.1 = .512
        (-10, -10, {"left of", "above"}),  # 8/14.14 = .566
        (10, -10, {"right of", "above"}),
        (-10, 10, {"left of", "below"}),
        (10, 10, {"right of", "below"}),
        (6, 6, set()),  # 4/8.49 = .471: the length is that before the shortening, 4/5.66 would be .707
        (-20, 10, {"left of"}),  # 18/22.4 = .805, 8/22.4 = .358
        (-2, -2, set()),
        (0, 0, set()),
    ],
)
def test_an_offset_is_shortened_and_then_compared_with_one_half(x: float, y: float, expected: set[str]) -> None:
    assert relations(found(DOG, x=x, y=y).box, found(CAT).box) == expected


def test_sizes_are_those_along_each_side() -> None:
    """Centres (0, 0) and (10, 10); sizes 40 by 2 and 10 by 2: 10 - 5 = 5 across, 10 - .4 = 9.6 down, over 14.14."""
    assert relations((-20.0, -1.0, 20.0, 1.0), (5.0, 9.0, 15.0, 11.0)) == {"above"}


def test_relations_turn_round_when_the_boxes_change_places() -> None:
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(300):
        corners = np.sort(rng.uniform(0, 100, (2, 2, 2)), axis=1).reshape(2, 4)
        one, other = (tuple(map(float, box)) for box in corners)
        held = relations(one, other)
        assert relations(other, one) == {opposite[name] for name in held}
        seen |= held
    assert seen == set(opposite)


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
@pytest.mark.parametrize("wanted", ["left of", "right of", "above", "below"])
def test_a_position_is_that_of_the_later_object_to_the_earlier(relation: str, wanted: str) -> None:
    """ "a dog RELATION a cat" names the cat first."""
    x, y = {"left of": (-50, 0), "right of": (50, 0), "above": (0, -50), "below": (0, 50)}[relation]
    prompt = prompt_of("position", {"class": "cat", "count": 1}, dogs(1) | {"position": [wanted, 0]})
    correct, reasons = judged(prompt, found(DOG, x=x, y=y), found(CAT))
    assert correct == (relation == wanted)
    assert reasons == (() if correct else (f"dog: wanted {wanted} cat, found {relation} it",))


def test_a_position_looks_at_the_surest_object_of_each_class() -> None:
    prompt = prompt_of("position", {"class": "cat", "count": 1}, dogs(1) | {"position": ["left of", 0]})
    left, right = found(DOG, 0.8, x=-50), found(DOG, 0.7, x=50)
    assert judged(prompt, right, left, found(CAT))[0]
    assert not judged(prompt, found(DOG, 0.9, x=50), left, found(CAT))[0]
    assert not judged(prompt, left, found(CAT, 0.6), found(CAT, 0.7, x=-90))[0]


def test_a_position_needs_the_object_it_refers_to() -> None:
    prompt = prompt_of("position", {"class": "cat", "count": 1}, dogs(1) | {"position": ["above", 0]})
    assert judged(prompt, found(DOG))[1] == ("cat: 1 wanted, 0 found", "dog: wanted above what was not found")
    assert judged(prompt, found(DOG), found(CAT))[1] == ("dog: wanted above cat, found neither side of it",)
    assert judged(prompt, found(CAT))[1] == ("dog: 1 wanted, 0 found",)


# Images


def test_images_are_judged_with_their_own_detections_and_colours() -> None:
    """An image's colour is that of its first pixel; the second is stored lying on its side."""

    class Detects:
        label = "a test"

        def detect(self, images: list[Image.Image]) -> list[list[Detection]]:
            return [[found(CAR)] if image.size == (8, 6) else [] for image in images]

    class Names:
        def __call__(self, image: Image.Image, objects: Sequence[Detection], class_name: str) -> list[str]:
            assert class_name == "car"
            return [next(name for name in COLOURS if image.getpixel((0, 0)) == colours[name])] * len(objects)

    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)} | dict.fromkeys(COLOURS[1:4] + COLOURS[5:])
    red, blue = (Image.new("RGB", (8, 6), colours[name]) for name in ("red", "blue"))
    turned = Image.new("RGB", (6, 8), (255, 0, 0))
    turned.getexif()[0x0112] = 6
    prompt = prompt_of("colors", {"class": "car", "count": 1, "color": "red"})
    verdicts = judge_images([red, turned, blue], [prompt] * 3, detector=Detects(), colours=Names())
    assert [verdict.correct for verdict in verdicts] == [True, True, False]
