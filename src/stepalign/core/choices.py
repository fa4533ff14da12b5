"""Named choices that settings and computations share; nothing is imported here, so that recipes load at once."""

from typing import Literal

Role = Literal["policy", "ema", "reference"]
"""Which weights predict: the trained adapter, its running average, or the base model alone."""
Preprocessing = Literal["clamp-first", "resize-first"]
"""How decoded images become CLIP's input; `clip.preprocess` defines each."""
PredictionType = Literal["epsilon", "v_prediction", "sample"]
"""The quantity that a denoising network predicts: the noise, the velocity or the clean sample."""
Pairing = Literal["best-worst", "all-k", "two-random"]
"""Which candidates of a step are compared."""
