"""Recognition of model families: of diffusers folders, hub repositories and single files, with names of other files."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import DiffusionPipeline

from stepalign.core.choices import PredictionType
from stepalign.models import sd, sdxl
from stepalign.models.base import Family
from stepalign.models.lora_layouts import FACTOR
from stepalign.models.prediction import prediction_of_file
from stepalign.support.tensor_files import read_header

FAMILIES = (sd.FAMILY, sdxl.FAMILY)
SUPPORTED = ", and ".join(family.name for family in FAMILIES)
OTHER_FILES = (
    (FACTOR, "a LoRA adapter; give it with --adapters, and its base model as the model"),
    (re.compile(r".*(?:double_blocks|single_blocks|single_transformer_blocks)\..*"), "of Flux"),
    (re.compile(r".*joint_blocks\..*"), "of Stable Diffusion 3"),
    (re.compile(r"(?:control_model\.|controlnet_).*"), "a ControlNet"),
    (re.compile(r"(?:model\.diffusion_model\.)?input_blocks\..*"), "a UNet without text encoders"),
    (
        re.compile(r"(?:first_stage_model\.)?(?:encoder|decoder)\..*"),
        "a VAE; give its diffusers folder with --base.vae",
    ),
)
"""Tensor name patterns of unsupported files, and what such a file is."""


def family_of_folder(source: str) -> Family:
    index = DiffusionPipeline.load_config(source)
    class_name = str(index.get("_class_name"))
    for family in FAMILIES:
        if re.match(family.class_names, class_name):
            absent = [
                part for part in (*family.text_encoders, *tokenizers_of(family)) if not any(index.get(part) or [])
            ]
            if absent:
                raise ValueError(f"{source} has no {absent[0]}, and images are to be made of text alone")
            return family
    raise ValueError(f"its pipeline is {class_name}; supported are {SUPPORTED}")


def family_of_file(path: Path, config: str | None, given: PredictionType | None) -> tuple[Family, dict[str, object]]:
    """The family of a single file in the original layout, and the changes of its noise schedule by the file's own
    marks.

    `config` is the folder or hub id of its configs, `given` the user's prediction type. Raises ValueError, without the
    file's name, for an unknown family and for a config of another.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"a {path.suffix or 'file without suffix'} may hold programs: convert it to .safetensors")
    keys, metadata = read_header(path)
    for family in FAMILIES:
        if any(key.startswith(family.file_keys) for key in keys):
            if config is not None and family_of_folder(config) is not family:
                raise ValueError(f"it is of {family.name} and its config {config} is not")
            return family, prediction_of_file(keys, metadata, given=given, has_config=config is not None)
    kind = next((kind for pattern, kind in OTHER_FILES if any(map(pattern.fullmatch, keys))), None)
    what = "it has no text encoder in the original layout" if kind is None else f"it is {kind}"
    raise ValueError(f"{what}; supported are {SUPPORTED}")


def tokenizers_of(family: Family) -> list[str]:
    return [part.replace("text_encoder", "tokenizer") for part in family.text_encoders]
