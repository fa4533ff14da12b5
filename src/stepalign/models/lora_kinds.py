"""Names of unsupported adapter files, recognised by their tensor names."""

from __future__ import annotations

import re
from collections.abc import Iterable

KINDS = (
    (r"\.hada_[wt]\d", "a LoHa (LyCORIS: Hadamard products)"),
    (r"\.lokr_[wt]\d", "a LoKr (LyCORIS: Kronecker products)"),
    (r"\.(?:oft|boft)_\w+", "an OFT adapter (orthogonal fine-tuning)"),
    (r"\.[ab][12]\.weight$", "a GLoRA (LyCORIS: generalised LoRA)"),
    (r"dora_scale|lora_magnitude_vector", "a DoRA (a LoRA with magnitudes)"),
    (r"\.lora_mid\.", "a LoCon in Tucker form, with a third factor lora_mid"),
    (r"\.(?:w_norm|b_norm)$", "a LyCORIS file with trained normalisation"),
    (r"\.diff(?:_b)?$", "a file with whole differences of weights beside or instead of a LoRA (LyCORIS full)"),
    (r"\.ia3_|\.on_input$", "an (IA)³ adapter"),
    (r"vera_lambda", "a VeRA"),
    (r"\.lora_E\b|ranknum", "an AdaLoRA"),
    (r"lora_embedding_[AB]", "a LoRA on token embeddings"),
    (r"\.lora_[AB](?:\.\w+)?\.bias$|\.lora_(?:down|up)\.bias$", "a LoRA with biases"),
    (r"^(?:string_to_param|string_to_token|emb_params|clip_[lg]$|<.*>$)", "a textual-inversion embedding"),
    (r"^(?:ip_adapter|image_proj|image_proj_model)\.", "an IP-Adapter"),
    (r"^(?:control_model\.|lora_controlnet|controlnet_|input_hint_block)", "a ControlNet"),
    (r"motion_modules?[._]", "weights of an AnimateDiff motion module"),
    (r"^(?:unet|text_encoder(?:_2)?):\d+:(?:up|down)", "a LoRA in cloneofsimo's numbered layout"),
    (r"^lora_prior_", "a LoRA for Stable Cascade"),
    (r"single_transformer_blocks|double_blocks|single_blocks", "a LoRA for Flux"),
    (r"joint_blocks|^lora_te3_|^text_encoder_3\.", "a LoRA for Stable Diffusion 3 or Flux"),
    (r"^(?:transformer|diffusion_model|lora_transformer)[._]", "a LoRA for a diffusion transformer (SD 3, Flux, ...)"),
    (
        r"^(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
        "a whole model; give it as model",
    ),
)
"""Tensor name patterns, and the kind of file that has them."""
NETWORK_TENSOR = re.compile(
    r"(?:unet\.)?(?:conv_in|conv_out|time_embedding|down_blocks|mid_block|up_blocks)\.(?!.*lora).*(?:weight|bias)"
)


def kind_of(keys: Iterable[str]) -> str | None:
    """The kind of an unsupported file by its tensor names; None when it is unknown or supported."""
    names = list(keys)
    for pattern, kind in KINDS:
        if any(re.search(pattern, name) for name in names):
            return kind
    if any(NETWORK_TENSOR.fullmatch(name) for name in names):
        return "a whole UNet; give its diffusers folder with --unet"
    return None
