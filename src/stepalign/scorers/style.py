"""Image statistics that reveal reward hacking (saturation, sharpness, ...), and wrong prompts as a control.

A reward that rises with saturation or sharpness alone, or for another prompt as much as for its own, does not come
from the content of the image.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from stepalign.support.images import as_rgb

JPEG_QUALITY = 95
HIGH_FREQUENCY = 0.25
"""Cycles per pixel; the highest there is along an axis is .5."""


def style_of(image: Image.Image) -> dict[str, float]:
    """The statistics of an image of at least 3 by 3 pixels; levels run from 0 to 255.

    saturation             mean of 1 - min/max over a pixel's red, green and blue (HSV's S), 0 for black
    colourfulness          Hasler and Suesstrunk (2003): 0 for greys, about 15 for slightly, 59 for quite, 109 for
                           extremely colourful
    contrast               standard deviation of luma, in levels
    sharpness              variance of luma's Laplacian, four neighbours minus four times the pixel, in squared levels
    high_frequency_share   share of luma's energy, its mean left out, at more than a quarter of the sampling rate: where
                           (f_x² + f_y²)^.5 > .25 cycles per pixel in the discrete Fourier transform; 0 for flat ones
    jpeg_bytes_per_pixel   of PIL's JPEG at quality 95 with 4:2:0, its header of some 600 bytes included

    Luma is ITU-R 601's, in whole levels. The last three depend on how many pixels an image has: the same scene at
    twice the resolution is less sharp by them. Compare images of one size, never resized and never saved as JPEG.
    """
    rgb = as_rgb(image)
    if min(rgb.size) < 3:
        raise ValueError(f"an image must have at least 3 by 3 pixels to have a style, got {rgb.width} by {rgb.height}")
    levels = np.asarray(rgb).astype(np.float64)
    luma = np.asarray(rgb.convert("L")).astype(np.float64)
    return {
        "saturation": saturation(levels),
        "colourfulness": colourfulness(levels),
        "contrast": float(luma.std()),
        "sharpness": sharpness(luma),
        "high_frequency_share": high_frequency_share(luma),
        "jpeg_bytes_per_pixel": jpeg_size(rgb) / (rgb.width * rgb.height),
    }


def saturation(levels: np.ndarray) -> float:
    """HSV's S, averaged over the pixels of levels "h w 3"."""
    highest, lowest = levels.max(axis=2), levels.min(axis=2)
    return float(np.where(highest > 0, 1 - lowest / np.maximum(highest, 1), 0).mean())


def colourfulness(levels: np.ndarray) -> float:
    """Hasler and Suesstrunk's (2003) M^(3): spread plus .3 times distance from grey of two opponent colours."""
    red, green, blue = np.moveaxis(levels, 2, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def sharpness(luma: np.ndarray) -> float:
    """The variance of the Laplacian over the pixels that have all four neighbours."""
    neighbours = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((neighbours - 4 * luma[1:-1, 1:-1]).var())


def high_frequency_share(luma: np.ndarray) -> float:
    """Energy above `HIGH_FREQUENCY` over all energy but the mean's; no window, so edges that do not meet add some."""
    energy = np.abs(np.fft.fft2(luma - luma.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(luma.shape[0])[:, None], np.fft.fftfreq(luma.shape[1]))
    total = energy.sum()
    return float(energy[frequency > HIGH_FREQUENCY].sum() / total) if np.ptp(luma) > 0 else 0.0


def jpeg_size(image: Image.Image) -> int:
    """Bytes of an image as JPEG."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return len(buffer.getvalue())


def wrong_prompts(prompts: list[str], *, seed: int) -> list[str]:
    """For every image another prompt's text, the same for all images of a prompt.

    The distinct prompts are arranged in a random cycle and each takes the text of the next. A gain under these texts is
    independent of the prompt: style. Raises ValueError for fewer than two prompts.
    """
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < 2:
        raise ValueError(f"wrong prompts need at least two distinct prompts, got {len(distinct)}")
    order = np.random.default_rng(seed).permutation(len(distinct))
    following = {distinct[one]: distinct[other] for one, other in zip(order, np.roll(order, -1), strict=True)}
    return [following[prompt] for prompt in prompts]
