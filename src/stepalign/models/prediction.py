"""Prediction type and noise schedule of a base model, from its files or the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

from diffusers import DDIMScheduler, DiffusionPipeline

from stepalign.core.choices import PredictionType

FLAG = "--base.prediction_type"
MARKS = {
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "velocity": "v_prediction",
    "epsilon": "epsilon",
    "eps": "epsilon",
    "sample": "sample",
    "x0": "sample",
}
"""Values of modelspec.prediction_type (https://github.com/Stability-AI/ModelSpec), and their meaning."""
ARCHITECTURES = {"stable-diffusion-v2-768-v": "v_prediction", "stable-diffusion-v2-512": "epsilon"}
"""Values of modelspec.architecture that distinguish the two kinds of Stable Diffusion 2.x, which nothing else does."""
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Tensors that mark Playground v2.5 and CosXL."""
STABLE_DIFFUSION_2 = "cond_stage_model.model."
"""How its text encoder's tensors begin in a single file."""
DEFAULTS = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
"""Defaults of a scheduler's config."""


def prediction_of_file(
    keys: Iterable[str], metadata: Mapping[str, str], *, given: PredictionType | None, has_config: bool
) -> dict[str, object]:
    """Changes that a single file's own marks make to the noise schedule borrowed from a config.

    `v_pred` and `ztsnr` among its tensors (v-prediction, zero terminal signal-to-noise ratio) and its ModelSpec
    metadata decide before the config does, which is usually that of the model it was tuned from; `given`, the user's
    word, before all. Raises ValueError naming the flag where the marks contradict each other, or there are none, no
    config, and the layout is of models of both kinds.
    """
    names = set(keys)
    if marks := [key for key in EDM if key in names]:
        raise ValueError(
            f"it is an EDM model ({marks[0]}: Playground v2.5, CosXL), whose noise schedule is not supported"
        )
    found: dict[str, str] = {"v_pred": "v_prediction"} if "v_pred" in names else {}
    for field in ("modelspec.prediction_type", "modelspec.predict_key"):
        if word := metadata.get(field, "").strip().lower():
            if word not in MARKS and given is None:
                raise ValueError(f"its {field} is {word!r}; say what it predicts with {FLAG}")
            found[field] = MARKS.get(word, word)
    if (architecture := metadata.get("modelspec.architecture", "")) in ARCHITECTURES:
        found["modelspec.architecture"] = ARCHITECTURES[architecture]
    if given is None and len(set(found.values())) > 1:
        said = ", ".join(f"{mark} says {value}" for mark, value in found.items())
        raise ValueError(f"its marks contradict each other ({said}); say what it predicts with {FLAG}")
    unknown = not found and given is None and not has_config
    if unknown and any(key.startswith(STABLE_DIFFUSION_2) for key in names):
        raise ValueError(
            f"Stable Diffusion 2.x predicts v at 768 pixels and epsilon at 512, and nothing in the file tells which it "
            f"is: give {FLAG} v_prediction or {FLAG} epsilon"
        )
    changes: dict[str, object] = {"prediction_type": given or next(iter(found.values()))} if given or found else {}
    if "ztsnr" in names:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return changes


def settle_schedule(pipeline: DiffusionPipeline, changes: Mapping[str, object]) -> None:
    """Put what is known better than the pipeline's config into its noise schedule, then DDIM's if it differs."""
    config = pipeline.scheduler.config
    if any(config.get(key, default) != changes[key] for key, default in DEFAULTS.items() if key in changes):
        pipeline.register_modules(scheduler=DDIMScheduler.from_config({**config, **changes}))


def check_schedule(pipeline: DiffusionPipeline) -> None:
    """Raise ValueError, a predicate without its subject, for a schedule that the network cannot be sampled on."""
    if "beta_start" not in pipeline.scheduler.config:
        kind = pipeline.scheduler.config["_class_name"]
        raise ValueError(f"has the noise schedule of {kind}; give a model trained with betas, as DDIM's are")
    schedule = DDIMScheduler.from_config(pipeline.scheduler.config)
    kind = schedule.config.prediction_type
    if kind not in get_args(PredictionType):
        raise ValueError(f"predicts {kind!r}; supported are {', '.join(get_args(PredictionType))}, see {FLAG}")
    if kind == "epsilon" and not schedule.alphas_cumprod.min() > 1e-8:
        raise ValueError(
            "has a noise schedule that ends at a signal-to-noise ratio of zero (rescale_betas_zero_snr) and predicts "
            f"epsilon, which says nothing of the image there: x0 = (x_t - eps) / 0. If it predicts v, give {FLAG} "
            "v_prediction; if it was trained on the plain schedule, set rescale_betas_zero_snr to false in its "
            "scheduler_config.json"
        )
