"""LoRA files in the layouts of diffusers, PEFT and kohya as low-rank updates of a model's own modules.

A module's update is W + (alpha / rank) B A. Where a file gives no alpha, alpha is the rank, as in every program that
reads these layouts.

    diffusers   unet.MODULE.lora_A.weight, text_encoder. ..., text_encoder_2. ...; alphas in .alpha tensors or metadata
    early       MODULE.processor.to_q_lora.down.weight, MODULE.lora.down.weight, ....lora_linear_layer.down.weight
    PEFT        base_model.model.MODULE.lora_A.weight beside adapter_config.json, which has ranks and alphas
    UNet only   MODULE.lora_A.weight, as unet.save_lora_adapter writes it
    kohya       lora_unet_MODULE.lora_down.weight, lora_te_, lora_te1_, lora_te2_, with .alpha tensors
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from stepalign.models.lora_kinds import kind_of
from stepalign.models.module_names import spellings

LAYOUTS = "those of diffusers (unet. ...), PEFT (base_model.model. ...) and kohya (lora_unet_ ..., lora_te_ ...)"
FACTOR = re.compile(r"(.+?)(?:\.lora_linear_layer|\.lora|_lora)[._](A|B|down|up)(?:\.(\w+))?\.weight")
ALPHA = re.compile(r"(.+?)(?:\.lora_linear_layer|\.lora|_lora)?\.alpha")
PREFIXES = (
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("unet.", "unet"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
)
"""Prefixes of module names, and their network; names without a prefix are searched in every network."""
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of PEFT's init_lora_weights under which the trained adapter belongs to changed base weights."""


@dataclass(frozen=True, slots=True)
class LoraUpdate:
    """The low-rank change of one module: W + scale B A, factors in float32."""

    part: str
    """The network: unet, text_encoder or text_encoder_2."""
    module: str
    """Its name in the network."""
    down: Float[Tensor, "r *rest"]
    """A: [rank, in], of a convolution [rank, in, kernel, kernel]."""
    up: Float[Tensor, "o r *ones"]
    """B: [out, rank], of a convolution [out, rank, 1, 1]."""
    scale: float
    """alpha / rank, or alpha / sqrt(rank) of a rank-stabilised LoRA."""


def check_lora(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Raise ValueError, a predicate without its subject, for files that are not LoRAs of these layouts."""
    kind = kind_of(tensors)
    for values in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        peft_type = str(values.get("peft_type") or "LORA").rpartition(".")[2]
        if peft_type != "LORA":
            kind = kind or f"a PEFT adapter of type {peft_type}"
        if values.get("use_dora"):
            kind = kind or "a DoRA (a LoRA with magnitudes)"
        if str(values.get("init_lora_weights")).lower().startswith(CHANGES_THE_BASE):
            kind = kind or f"a LoRA of weights that {values['init_lora_weights']} changed; save it converted to a LoRA"
    if kind is not None:
        raise ValueError(f"is {kind}, which is not read here; the LoRA layouts that are: {LAYOUTS}")
    strange = [key for key in tensors if not (FACTOR.fullmatch(key) or ALPHA.fullmatch(key))]
    if strange or not tensors:
        what = f"holds {strange[0]}" if strange else "holds nothing"
        raise ValueError(f"{what}; the LoRA layouts that can be read are {LAYOUTS}")


def lora_updates(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], networks: Mapping[str, nn.Module]
) -> list[LoraUpdate]:
    """The updates of a LoRA file that passed `check_lora`: one per module of the model.

    `config` holds PEFT's settings (adapter_config.json, or the metadata that diffusers writes), empty without any.
    Raises ValueError unless every tensor belongs to a pair of factors of the right shapes.
    """
    names = {part: spellings(network, is_unet=part == "unet") for part, network in networks.items()}
    factors: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    alphas: dict[tuple[str, str], float] = {}
    lost = []
    for key, tensor in tensors.items():
        found = FACTOR.fullmatch(key) or ALPHA.fullmatch(key)
        assert found is not None
        place = _place(found[1], names, key)
        if place is None:
            lost.append(key)
        elif found.re is ALPHA:
            alphas[place] = _checked(key, tensor).item()
        else:
            which = "A" if found[2] in ("A", "down") else "B"
            if which in factors[place]:
                raise ValueError(f"it has {place[1]}'s {which} twice, once as {key}")
            factors[place][which] = _checked(key, tensor)
    if lost:
        raise ValueError(f"{len(lost)} of its {len(tensors)} tensors have no place in it: {lost[0]}, ...")
    if lone := alphas.keys() - factors.keys():
        raise ValueError(f"it has an alpha for {min(lone)[1]} and no weights")
    return [
        _update(place, pair, alphas.get(place), config, networks[place[0]].get_submodule(place[1]))
        for place, pair in factors.items()
    ]


def _place(name: str, names: Mapping[str, Mapping[str, str]], key: str) -> tuple[str, str] | None:
    """The network and module of a file's module name, None if the model has none."""
    name = name.removeprefix("base_model.model.")
    parts = list(names)
    for prefix, part in PREFIXES:
        if name.startswith(prefix):
            name, parts = name.removeprefix(prefix), [part]
            break
    found = [(part, names[part][name]) for part in parts if part in names and name in names[part]]
    if len(found) > 1:
        raise ValueError(f"{key} may be of {' or '.join(part for part, _ in found)}; begin its name so")
    return found[0] if found else None


def _checked(key: str, tensor: Tensor) -> Tensor:
    """A tensor in float32; raises ValueError for types that no LoRA has."""
    if not (tensor.is_floating_point() or key.endswith("alpha")):
        raise ValueError(f"{key} holds {str(tensor.dtype).removeprefix('torch.')} numbers, a quantised LoRA's")
    if key.endswith("alpha") and tensor.numel() != 1:
        raise ValueError(f"{key} has {tensor.numel()} numbers, not one")
    value = tensor.float()
    if not value.isfinite().all():
        raise ValueError(f"{key} holds numbers that are not finite")
    return value


def _update(
    place: tuple[str, str],
    pair: Mapping[str, Tensor],
    alpha: float | None,
    config: Mapping[str, Any],
    module: nn.Module,
) -> LoraUpdate:
    """One module's update; raises ValueError where a factor is missing or of another shape."""
    part, name = place
    if missing := {"A", "B"} - pair.keys():
        raise ValueError(f"it has no weights for {part}.{name}.lora_{missing.pop()}")
    down, up = _shaped(pair["A"], module), _shaped(pair["B"], module)
    rank = len(down)
    weight = module.get_parameter("weight")
    fits = down.shape[1:] == weight.shape[1:] and up.shape == (len(weight), rank, *[1] * (weight.dim() - 2))
    if rank == 0 or not fits:
        raise ValueError(
            f"size mismatch at {part}.{name}: A is {tuple(pair['A'].shape)} and B {tuple(pair['B'].shape)} "
            f"for a weight of {tuple(weight.shape)}"
        )
    own = {key.removeprefix(f"{part}."): value for key, value in config.items() if key.startswith(f"{part}.")} or config
    stabilised = bool(own.get("use_rslora"))
    if alpha is None and own.get("lora_alpha") is not None:
        alpha = float(_of_pattern(own.get("alpha_pattern"), name, own["lora_alpha"]))
        stated = _of_pattern(own.get("rank_pattern"), name, own.get("r", rank))
        if stated != rank:
            raise ValueError(f"its settings give {part}.{name} the rank {stated}, its tensors have {rank}")
    alpha = float(rank) if alpha is None else alpha
    return LoraUpdate(part, name, down, up, alpha / (rank**0.5 if stabilised else rank))


def _shaped(tensor: Tensor, module: nn.Module) -> Tensor:
    """A factor with the dimensions of its module: early files keep 1x1 convolutions as matrices, or the reverse."""
    dimensions = module.get_parameter("weight").dim()
    if tensor.dim() == 2 and dimensions == 4:
        return tensor[:, :, None, None]
    if tensor.dim() == 4 and dimensions == 2 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor


def _of_pattern(pattern: Any, name: str, default: Any) -> Any:
    """The value of the first of PEFT's patterns that a module's name ends with, else the default."""
    for key, value in (pattern or {}).items():
        if re.match(key if key.startswith("^") else rf"(.*\.)?({key})$", name):
            return value
    return default
