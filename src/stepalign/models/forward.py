"""The forward pass of a denoising UNet of diffusers."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Real
from torch import Tensor, nn

from stepalign.core.batch import Conditioning

Forward = Callable[
    [nn.Module, Float[Tensor, "b c h w"], Real[Tensor, " b"], Conditioning],
    Float[Tensor, "b c h w"],
]
"""(network, x_t, t, conditioning) -> what the network predicts, without guidance."""


def unet_forward(
    network: nn.Module, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning
) -> Float[Tensor, "b c h w"]:
    """The prediction of a UNet that takes text tokens, and pooled text with image sizes where there are any."""
    weights = next(network.parameters()).dtype
    extra = {}
    if cond.pooled is not None:
        # Sizes stay in float32 until the network has embedded them: half precision would round large ones.
        extra["added_cond_kwargs"] = {"text_embeds": cond.pooled.to(weights), "time_ids": cond.time_ids}
    prediction: Tensor = network(
        x_t.to(weights), t, encoder_hidden_states=cond.tokens.to(weights), **extra
    ).sample.float()
    return prediction
