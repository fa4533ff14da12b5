"""The files of step-aware preference models: safetensors folders, the released checkpoints, the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig

from stepalign.models.clip import resolve_folder
from stepalign.support.errors import first_line
from stepalign.support.files import replacing, write_text
from stepalign.support.hub import not_on_hub, reach_hub, split_hub_file
from stepalign.support.tensor_files import read_folder_tensors, read_tensors, weight_files

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
OPTIONS = "step_aware"
"""The key in config.json for options that a CLIP's config does not have."""
MODEL_TYPE, ARCHITECTURE = "step_aware_preference_model", "StepAwarePreferenceModel"
"""Names in config.json, so that no other program loads the folder as a CLIP."""
RELEASED_TOKENIZER = "yuvalkirstain/PickScore_v1"
"""Whose tokenizer the released checkpoints use."""


def read_folder(name: str) -> tuple[CLIPConfig, dict[str, Any], dict[str, Tensor]]:
    """Config, options and tensors of a folder or hub repository that `write_folder` wrote, now or in earlier versions.

    Raises ValueError naming what is missing or damaged.
    """
    folder = resolve_folder(name)
    for file, there in ((CONFIG, (folder / CONFIG).is_file()), (WEIGHTS, bool(weight_files(folder)))):
        if not there:
            raise ValueError(f"{name!s} has no {file}; a step-aware preference model has {CONFIG}, {WEIGHTS}")
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        options = values.pop(OPTIONS, {})
        if not isinstance(options, dict):
            raise ValueError(f"its {OPTIONS} is {options!r}")
        if values.get("model_type") not in (MODEL_TYPE, "clip", None):
            raise ValueError(f"its model_type is {values['model_type']!r}")
        values |= {"model_type": "clip", "architectures": ["CLIPModel"]}
        return CLIPConfig.from_dict(values), options, read_folder_tensors(folder)
    except Exception as error:  # a damaged config has transformers raise nearly anything
        raise ValueError(f"{name!s} holds a damaged {CONFIG} or {WEIGHTS}: {error}") from error


def read_released(name: str) -> dict[str, Tensor]:
    """The tensors of a released checkpoint, a flat pickled dict whose keys start with `model.`, mapped into memory.

    `name` is a file, or owner/name/file on the hub. Float `position_ids` buffers are dropped. Raises ValueError when
    the file is damaged or holds anything but tensors.
    """
    path = Path(name).expanduser()
    tensors = read_tensors(path if path.is_file() else _download(name))
    kept = {key.removeprefix("model."): value for key, value in tensors.items() if "position_ids" not in key}
    if len(kept) < sum("position_ids" not in key for key in tensors):
        raise ValueError(f"{name} has tensors twice, with and without the prefix model.")
    return kept


def check_fit(tensors: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    """Raise ValueError listing every missing, unexpected or misshapen tensor."""
    problems = [f"missing {key}" for key in expected.keys() - tensors.keys()]
    problems += [f"unexpected {key}" for key in tensors.keys() - expected.keys()]
    problems += [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected.keys() & tensors.keys()
        if tensors[key].shape != expected[key].shape
    ]
    if problems:
        raise ValueError(f"{name} does not fit its config in {len(problems)} tensors: {'; '.join(sorted(problems))}")


def write_folder(folder: Path, config: CLIPConfig, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors, each whole or not at all.

    The config of a model with timestep conditioning names an architecture and a type of its own: transformers'
    AutoModel would make a plain CLIP of it, which ignores the timestep.
    """
    values = _without_paths(config.to_dict()) | {OPTIONS: options}
    if options.get("timestep_conditioning", True):
        values |= {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}
    write_text(folder / CONFIG, json.dumps(values, indent=2, sort_keys=True) + "\n")
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _without_paths(values: dict[Any, Any]) -> dict[Any, Any]:
    """A config without the places on this machine that its parts were loaded from."""
    kept = {key: value for key, value in values.items() if key != "_name_or_path"}
    return {key: _without_paths(value) if isinstance(value, dict) else value for key, value in kept.items()}


def publish(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a judge's folder to the hub, creating the repository if need be, and return its address.

    Raises ValueError when the folder lacks a file that loading or readers need, or when the hub refuses.
    """
    for file in (CONFIG, WEIGHTS, "tokenizer_config.json", CARD):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} has no {file}; give the judge/ folder that stepalign train-judge writes")
    if reason := reach_hub():
        raise ValueError(f"cannot publish to {repo_id!r}: {reason}")
    try:
        api = HfApi()
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        files = [CONFIG, WEIGHTS, CARD, "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json"]
        message = "Upload a step-aware preference model"
        api.upload_folder(folder_path=folder, repo_id=repo_id, allow_patterns=files, commit_message=message)
    except Exception as error:  # the hub's, the network's and the disk's
        raise ValueError(f"cannot publish to {repo_id!r}: {first_line(error)}; `hf auth login` signs in") from error
    return str(url)


def vit_h_config() -> CLIPConfig:
    """CLIP ViT-H/14 as PickScore_v1 and the released step-aware preference models have it."""
    common = {"num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 1024}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "eos_token_id": 2}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
    return CLIPConfig(text_config={**common, **text}, vision_config={**common, **vision}, projection_dim=1024)


def _download(name: str) -> Path:
    found = split_hub_file(name)
    if found is None:
        raise ValueError(f"there is no file {name!r}, and it is not owner/name/file on the hub")
    reach_hub()
    try:
        return Path(hf_hub_download(*found))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(not_on_hub(name, "file")) from error
