"""Identity by content: SHA-256 digests of the parts that decide a result, and their comparison.

A part is its tensors, its config and its vocabulary, not the path or the file format they came from: the same content
at another path is the same part, other content at the same path is another one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

Identity = dict[str, str]
"""Part -> digest, or a short value in words: {"unet.weights": "9f2c...", "precision": "float16"}."""

CHUNK = 1 << 22
SHOWN = 16
"""Characters of a digest in messages."""
NOT_DECISIVE = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "sample_size", "step_aware"),
        *("initializer_range", "initializer_factor", "logit_scale_init_value", "attention_dropout", "dropout"),
    }
)
"""Fields of a config without effect on a frozen network. (A UNet's sample_size is the default resolution,
which `models.identity` keeps as a part of its own; `step_aware` are the judge's options, which it keeps too.)"""


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The digest of tensors, their names, types and shapes, in the order of their names, on any device.

    One tensor at a time is copied to the host.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_weights(module: nn.Module, part: str) -> None:
    """Raise ValueError naming the first weight of a loaded network, the `part`, whose values are not all finite."""
    for name, weight in module.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(
                f"the weight {name} of the {part} ({type(module).__name__}) holds values that are not finite numbers: "
                "its file is damaged, or its precision too low"
            )


def module_digest(module: nn.Module, part: str) -> str:
    """The digest of a module's weights and their precision; raises ValueError, naming the `part`, where a weight is not
    finite."""
    check_weights(module, part)
    return tensors_digest(module.state_dict())


def files_digest(paths: Iterable[Path]) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it; of several, that of theirs in the order of names."""
    digests = []
    for path in sorted(paths, key=lambda path: path.name):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        digests.append(digest.hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return files_digest([path])


def ordered_files_digest(paths: Iterable[Path]) -> str:
    """The digest of many files in a given order, such as a folder's images by its manifest."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def text_digest(texts: list[str]) -> str:
    """The digest of texts in their order, such as prompts."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def values_digest(values: Any) -> str:
    """The digest of plain values (what JSON can hold); the order of keys plays no part."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hub_revision(name: str) -> str | None:
    """The commit of a hub id, OWNER/NAME or OWNER/NAME/FILE, in the cache; None for a local path."""
    if Path(name).expanduser().exists():
        return None
    reference = Path(HF_HUB_CACHE, f"models--{'--'.join(name.split('/')[:2])}", "refs", "main")
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def config_digest(config: PretrainedConfig | Mapping[str, Any], kind: type | None = None) -> str:
    """The digest of a config's non-default fields; `kind` is the class of a diffusers model.

    A field with a default that a later version of the library adds does not change it.
    """
    if isinstance(config, PretrainedConfig):
        return values_digest(_decisive(config.to_dict(), type(config)().to_dict()))
    assert kind is not None
    parameters = inspect.signature(kind).parameters.values()
    return values_digest(_decisive(config, {parameter.name: parameter.default for parameter in parameters}))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The digest of vocabulary, merges, pre-tokenization, special tokens and length."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model.get("merges", [])]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    steps = [state[name] for name in ("normalizer", "pre_tokenizer", "post_processor")]
    added = sorted((token["id"], token["content"]) for token in state["added_tokens"])
    length = min(int(tokenizer.model_max_length), 1 << 31)
    return values_digest([model["type"], tokenizer.get_vocab(), merges, special, steps, added, length])


def network_identity(
    name: str, network: nn.Module, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> Identity:
    """Digests of a transformers network's weights and config, and of its tokenizer."""
    found = {f"{name}.weights": module_digest(network, name), f"{name}.config": config_digest(config)}
    return found if tokenizer is None else found | {f"{name}.tokenizer": tokenizer_digest(tokenizer)}


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The parts present in both sets that differ; other versions may have fewer parts."""
    return [part for part in ours if part in theirs and ours[part] != theirs[part]]


def refuse_differences(ours: Mapping[str, str], theirs: Mapping[str, str], *, whose: str) -> None:
    """Raise ValueError naming every part that differs; `whose` names the other set, as "this run began with"."""
    parts = differences(ours, theirs)
    if parts:
        shown = ", ".join(f"{part} ({theirs[part][:SHOWN]} then, {ours[part][:SHOWN]} now)" for part in parts)
        raise ValueError(f"{shown}: not what {whose}; restore what it was, or give another directory")


def _decisive(values: Mapping[Any, Any], default: Mapping[Any, Any]) -> dict[str, Any]:
    """The relevant fields with values other than the default."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name, usual = str(key), default.get(key)
        if name.startswith("_") or name in NOT_DECISIVE:
            continue
        if isinstance(value, Mapping):
            inner = _decisive(value, usual if isinstance(usual, Mapping) else {})
            found |= {name: inner} if inner else {}
        elif _plain(value) != _plain(usual):
            found[name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """Canonical form of a config value: one value for a list of equal ones, None for a disabled option."""
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return items[0] if items and all(item == items[0] for item in items) else items
    return None if value is False else value
