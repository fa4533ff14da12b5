"""The step-aware preference model (SPM; SPO section 4.2, supplement 2): PickScore's CLIP with a vision tower that
knows the timestep. score = exp(logit_scale) cos(image, text), fp32.

Every vision block gets shift, scale and gate for its attention and its MLP from the timestep embedding (adaLN), and
the head gets shift and scale:

    h <- h + gate · Attn(LN1(h) (1 + scale) + shift),   the same for the MLP;   head(CLS) = LN(CLS) (1 + scale) + shift

At initialisation gates are 1 and the rest 0, so that the SPM is the CLIP it was built from, at every timestep.
"""

from __future__ import annotations

import copy
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stepalign.core.choices import Preprocessing
from stepalign.judges.spm_files import CARD, check_fit, publish, read_folder, read_released, vit_h_config, write_folder
from stepalign.support.config import require
from stepalign.support.files import write_text

EMBEDDING_WIDTH = 256


def timestep_embedding(t: Int[Tensor, " b"]) -> Float[Tensor, "b 256"]:
    """Sinusoids of an integer timestep, [cos, sin], frequencies 10000^(-i/128), fp32."""
    half = EMBEDDING_WIDTH // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class TimestepEmbedder(nn.Module):
    """Sinusoids, then Linear - SiLU - Linear to the tower's width; one for all blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(EMBEDDING_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return self.mlp(timestep_embedding(t).to(next(self.parameters()).dtype))


class StepAwarePreferenceModel(nn.Module):
    """CLIP with a time-conditioned vision tower; parameter names are those of the released checkpoints."""

    def __init__(
        self, config: CLIPConfig, *, timestep_conditioning: bool = True, preprocessing: Preprocessing = "clamp-first"
    ) -> None:
        super().__init__()
        known = get_args(Preprocessing)
        require(
            isinstance(timestep_conditioning, bool), "timestep_conditioning", timestep_conditioning, "true or false"
        )
        require(preprocessing in known, "preprocessing", preprocessing, f"one of {', '.join(known)}")
        self.config = config
        self.timestep_conditioning = timestep_conditioning
        """False leaves plain CLIP, which sees noisy images but not the timestep (SPO Table 5)."""
        self.preprocessing: Preprocessing = preprocessing
        """Preprocessing of decoded images for the tower, in training and in scoring."""
        self.gradient_checkpointing = False
        clip = CLIPModel(config)
        self.text_model = clip.text_model
        self.vision_model = clip.vision_model
        self.visual_projection = clip.visual_projection
        self.text_projection = clip.text_projection
        self.logit_scale = clip.logit_scale
        if timestep_conditioning:
            self._add_conditioning(config.vision_config.hidden_size)

    @torch.no_grad()
    def _add_conditioning(self, width: int) -> None:
        """Make every timestep see plain CLIP: modulations 0 but the gates' biases 1, embedder N(0, .02²)."""
        self.t_embedder = TimestepEmbedder(width)
        self.vision_model.adaLN_modulation = _modulation(width, 2)
        for layer in self.vision_model.encoder.layers:
            layer.adaLN_modulation = _modulation(width, 6)
            _, _, gate_msa, _, _, gate_mlp = layer.adaLN_modulation[1].bias.chunk(6)
            gate_msa.fill_(1.0)
            gate_mlp.fill_(1.0)
        for name, parameter in self.t_embedder.named_parameters():
            parameter.copy_(
                torch.zeros_like(parameter) if name.endswith("bias") else 0.02 * torch.randn_like(parameter)
            )

    @classmethod
    def from_clip(
        cls, clip: CLIPModel, *, timestep_conditioning: bool = True, preprocessing: Preprocessing = "clamp-first"
    ) -> StepAwarePreferenceModel:
        """The SPM that scores exactly as a CLIP or PickScore model does, at every timestep."""
        model = cls(
            copy.deepcopy(clip.config), timestep_conditioning=timestep_conditioning, preprocessing=preprocessing
        )
        missing, unexpected = model.load_state_dict(clip.state_dict(), strict=False)
        assert not unexpected
        assert all("adaLN_modulation" in name or name.startswith("t_embedder") for name in missing)
        return model

    @classmethod
    def from_pretrained(cls, name: str | Path, *, dtype: torch.dtype = torch.float32) -> StepAwarePreferenceModel:
        """Load a folder or hub repository that `save_pretrained` wrote, strictly.

        In half precision the sinusoids, the scale and the scores stay fp32. Raises ValueError naming what is missing.
        """
        config, options, tensors = read_folder(str(name))
        try:
            with torch.device("meta"):
                model = cls(config, **options)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{name!s} was written by another version of stepalign: {error}") from error
        return model._filled(tensors, str(name), dtype)

    @classmethod
    def from_checkpoint(
        cls, name: str | Path, config: CLIPConfig | None = None, *, dtype: torch.dtype = torch.float32
    ) -> StepAwarePreferenceModel:
        """Load a released checkpoint: a flat pickled dict of tensors whose names start with `model.`.

        `name` is a file, or owner/name/file on the hub; the config is PickScore's ViT-H/14 unless given. Float
        `position_ids` buffers are dropped; anything else that does not fit raises ValueError.
        """
        tensors = read_released(str(name))
        with torch.device("meta"):
            model = cls(config or vit_h_config())
        return model._filled(tensors, str(name), dtype)

    def _filled(self, tensors: dict[str, Tensor], name: str, dtype: torch.dtype) -> StepAwarePreferenceModel:
        """This model, made on the meta device, with its tensors."""
        check_fit(tensors, self.state_dict(), name)
        self.load_state_dict({key: _in_precision(key, value, dtype) for key, value in tensors.items()}, assign=True)
        for embeddings in (self.text_model.embeddings, self.vision_model.embeddings):
            # Buffers that no checkpoint holds and the meta device left empty.
            embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1])[None]
        return self

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors; in half precision the scale stays fp32."""
        options = {"timestep_conditioning": self.timestep_conditioning, "preprocessing": self.preprocessing}
        tensors = {
            key: _in_precision(key, value.detach(), dtype).contiguous() for key, value in self.state_dict().items()
        }
        write_folder(Path(folder), self.config, options, tensors)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: CLIPTokenizer,
        card: str,
        dtype: torch.dtype = torch.float32,
        private: bool = False,
    ) -> str:
        """Upload weights, tokenizer and model card to the hub and return the address; raises ValueError if refused."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype=dtype)
            tokenizer.save_pretrained(folder)
            write_text(Path(folder) / CARD, card)
            return publish(Path(folder), repo_id, private=private)

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory in training: blocks run again for their gradients."""
        self.gradient_checkpointing = True
        for layer in self.text_model.encoder.layers:
            # What transformers' switch sets, whose name changes between its versions.
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def text_features(
        self, input_ids: Int[Tensor, "b l"], attention_mask: Int[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b e"]:
        """Unit text embeddings, fp32."""
        pooled = self.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return F.normalize(self.text_projection(pooled).float(), dim=-1)

    def image_features(self, pixel_values: Float[Tensor, "b 3 s s"], t: Int[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Unit image embeddings at timestep t, fp32."""
        tower = self.vision_model
        embedding = self.t_embedder(t) if self.timestep_conditioning else None
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(_block, layer, hidden, embedding, use_reentrant=False)
            else:
                hidden = _block(layer, hidden, embedding)
        pooled = tower.post_layernorm(hidden[:, 0])
        if embedding is not None:
            shift, scale = tower.adaLN_modulation(embedding).chunk(2, dim=-1)
            pooled = pooled * (1 + scale) + shift
        return F.normalize(self.visual_projection(pooled).float(), dim=-1)

    def score(self, image_features: Float[Tensor, "b e"], text_features: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        """exp(logit_scale) times the cosine of each image with its text, fp32."""
        return self.logit_scale.float().exp() * (image_features * text_features).sum(-1)


def _modulation(width: int, num: int) -> nn.Sequential:
    """`num` vectors from a timestep's embedding, all 0 until trained."""
    linear = nn.Linear(width, num * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


def _block(layer: Any, hidden: Float[Tensor, "b n d"], embedding: Float[Tensor, "b d"] | None) -> Tensor:
    """One block of the vision tower, modulated by the timestep's embedding if there is one."""
    if embedding is None:
        hidden = hidden + layer.self_attn(hidden_states=layer.layer_norm1(hidden), attention_mask=None)[0]
        return hidden + layer.mlp(layer.layer_norm2(hidden))
    parts = layer.adaLN_modulation(embedding)[:, None].chunk(6, dim=-1)
    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = parts
    normed = layer.layer_norm1(hidden) * (1 + scale_msa) + shift_msa
    hidden = hidden + gate_msa * layer.self_attn(hidden_states=normed, attention_mask=None)[0]
    normed = layer.layer_norm2(hidden) * (1 + scale_mlp) + shift_mlp
    return hidden + gate_mlp * layer.mlp(normed)


def _in_precision(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in a dtype; the scale, whose exponential multiplies every score, in fp32."""
    return tensor.to(torch.float32 if name == "logit_scale" else dtype)
