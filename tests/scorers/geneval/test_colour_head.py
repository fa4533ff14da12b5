"""What CLIP sees of an object, and which of ten colours it is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from stepalign.scorers.geneval.colour_head import ColourHead, cut_out
from stepalign.scorers.geneval.rules import COLOURS, Detection
from stepalign.scorers.preparation import clip_pixels


def an_image(width: int = 12, height: int = 10, *, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def block(left: int, top: int, right: int, bottom: int, *, size: tuple[int, int] = (10, 12)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


OBJECTS = [
    Detection(2, 0.9, (1.0, 2.0, 6.0, 9.0), block(1, 2, 6, 9)),
    Detection(2, 0.8, (4.0, 0.0, 12.0, 10.0), block(4, 0, 12, 5)),
    Detection(2, 0.7, (0.0, 0.0, 3.0, 3.0), None),
]


def test_what_is_outside_the_mask_is_grey_and_outside_the_box_is_cut() -> None:
    """#999 is 153; the lower half of the second object's box is not its own."""
    image = an_image()
    pixels = np.array(image)
    cut = np.array(cut_out(image, OBJECTS[1]))
    assert cut.shape == (10, 8, 3)
    np.testing.assert_array_equal(cut[:5], pixels[:5, 4:])
    assert (cut[5:] == 153).all()
    np.testing.assert_array_equal(np.array(cut_out(image, OBJECTS[2])), pixels[:3, :3])


@pytest.mark.parametrize(("box", "size"), [((1.4, 2.6, 5.5, 9.49), (5, 6)), ((-2.0, 0.0, 3.0, 4.0), (5, 4))])
def test_boxes_are_rounded_and_may_reach_beyond_the_image(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    """As PIL's crop: 1.4 to 5.5 are columns 1 to 5 (rounded to even, 6), 2.6 to 9.49 rows 3 to 8."""
    cut = cut_out(an_image(), Detection(2, 0.9, box))
    assert cut.size == size
    assert cut.tobytes() == an_image().crop(box).tobytes()


def test_other_modes_are_made_rgb() -> None:
    assert cut_out(an_image().convert("RGBA"), OBJECTS[0]).tobytes() == cut_out(an_image(), OBJECTS[0]).tobytes()
    assert cut_out(an_image().convert("L"), OBJECTS[0]).mode == "RGB"


def test_a_mask_of_another_size_and_an_empty_box_are_refused() -> None:
    with pytest.raises(ValueError, match="a mask of 12 by 10 pixels is not of an image of 10 by 12"):
        cut_out(an_image(10, 12), OBJECTS[0])
    with pytest.raises(ValueError, match=r"the box \(3\.0, 2\.0, 3\.2, 9\.0\) holds no pixels"):
        cut_out(an_image(), Detection(2, 0.9, (3.0, 2.0, 3.2, 9.0)))


def test_cosines_are_with_the_mean_of_three_unit_texts(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Each colour and object by itself, text by text."""
    head, image = ColourHead(tiny_clip, tokenizer), an_image()
    found = head.cosines(image, OBJECTS, "car")
    assert found.shape == (3, 10)
    for row, thing in enumerate(OBJECTS):
        pixels = clip_pixels([cut_out(image, thing)], 32, "torchvision")
        seen = F.normalize(tiny_clip.get_image_features(pixel_values=pixels).pooler_output[0], dim=0)
        for column, colour in enumerate(COLOURS):
            units = []
            for text in (
                f"a photo of a {colour} car",
                f"a photo of a {colour}-colored car",
                f"a photo of a {colour} object",
            ):
                ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=16).input_ids
                units.append(F.normalize(tiny_clip.get_text_features(input_ids=ids).pooler_output[0], dim=0))
            mean = sum(units) / 3
            expected = (seen * mean / mean.norm()).sum().item()
            assert found[row, column].item() == pytest.approx(expected, abs=1e-5)


def test_an_object_has_the_nearest_colour_whatever_is_beside_it(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    head = ColourHead(tiny_clip, tokenizer)
    names = set()
    for seed in range(6):
        image = an_image(seed=seed)
        together = head(image, OBJECTS, "car")
        assert together == [COLOURS[row.argmax().item()] for row in head.cosines(image, OBJECTS, "car")]
        assert together == [head(image, [one], "car")[0] for one in OBJECTS]
        names |= set(together)
    assert names <= set(COLOURS)
    assert head(an_image(), [], "car") == []


def test_a_class_has_texts_of_its_own(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    head = ColourHead(tiny_clip, tokenizer)
    car = head.cosines(an_image(), OBJECTS, "circle")
    assert not torch.allclose(head.cosines(an_image(), OBJECTS, "square"), car, atol=1e-4)
    torch.testing.assert_close(head.cosines(an_image(), OBJECTS, "circle"), car, rtol=0, atol=0)


def test_a_saved_model_names_the_same_colours(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tiny_clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    head = ColourHead.from_pretrained(str(tmp_path))
    torch.testing.assert_close(
        head.cosines(an_image(), OBJECTS, "car"), ColourHead(tiny_clip, tokenizer).cosines(an_image(), OBJECTS, "car")
    )
    record = head.record
    assert (record.name, record.weights) == ("geneval-colours", tmp_path.name)
    assert record.preprocessing.startswith("grey #999 outside the object's mask, cropped to its box, then RGB")
    assert len(ColourHead(tiny_clip, tokenizer).record.sha256) == 64
    half = ColourHead.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    assert half.cosines(an_image(), OBJECTS, "car").dtype == torch.float32
    with pytest.raises(ValueError, match="there is no folder"):
        ColourHead.from_pretrained("not a name")
