"""The step-aware preference model (SPM; SPO section 4.2, supplement 2): PickScore's CLIP with a vision tower that
knows the timestep. score = exp(logit_scale) cos(image, text), fp32.

Every vision block gets shift, scale and gate for its attention and its MLP from the timestep embedding (adaLN), and
the head gets shift and scale:

    h <- h + gate · Attn(LN1(h) (1 + scale) + shift),   the same for the MLP;   head(CLS) = LN(CLS) (1 + scale) + shift

At initialisation gates are 1 and the rest 0, so that the SPM is the CLIP it was built from, at every timestep.
"""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stepalign.clip import check_tokenizer, preprocess, resolve_folder, tokenize
from stepalign.protocols import Decode

WEIGHTS, CONFIG = "model.safetensors", "config.json"
EMBEDDING_WIDTH = 256
RELEASED_TOKENIZER = "yuvalkirstain/PickScore_v1"
"""Whose tokenizer the released checkpoints use."""


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

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        clip = CLIPModel(config)
        width = config.vision_config.hidden_size
        self.text_model = clip.text_model
        self.vision_model = clip.vision_model
        self.visual_projection = clip.visual_projection
        self.text_projection = clip.text_projection
        self.logit_scale = clip.logit_scale
        self.t_embedder = TimestepEmbedder(width)
        self.vision_model.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        for layer in self.vision_model.encoder.layers:
            layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.reset_conditioning()

    @torch.no_grad()
    def reset_conditioning(self) -> None:
        """Make every timestep see plain CLIP: modulations 0 but the gates' biases 1, embedder N(0, .02²)."""
        for linear in self.t_embedder.mlp:
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
        tower = self.vision_model
        for modulation in (tower.adaLN_modulation, *(layer.adaLN_modulation for layer in tower.encoder.layers)):
            nn.init.zeros_(modulation[1].weight)
            nn.init.zeros_(modulation[1].bias)
        for layer in tower.encoder.layers:
            _, _, gate_msa, _, _, gate_mlp = layer.adaLN_modulation[1].bias.chunk(6)
            gate_msa.fill_(1.0)
            gate_mlp.fill_(1.0)

    @classmethod
    def from_clip(cls, clip: CLIPModel) -> StepAwarePreferenceModel:
        """The SPM that scores exactly as a CLIP or PickScore model does, at every timestep."""
        model = cls(clip.config)
        missing, unexpected = model.load_state_dict(clip.state_dict(), strict=False)
        assert not unexpected
        assert all("adaLN_modulation" in name or name.startswith("t_embedder") for name in missing)
        return model

    @classmethod
    def from_pretrained(cls, name: str | Path) -> StepAwarePreferenceModel:
        """Load a folder or hub repository that `save_pretrained` wrote, strictly, in fp32.

        Raises ValueError naming what is missing.
        """
        folder = resolve_folder(str(name))
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise ValueError(f"{name!s} has no {file}; a step-aware preference model has {CONFIG}, {WEIGHTS}")
        try:
            config = CLIPConfig.from_dict(json.loads((folder / CONFIG).read_text()))
            tensors = load_file(folder / WEIGHTS)
        except (ValueError, OSError, SafetensorError) as error:
            raise ValueError(f"{name!s} holds a damaged {CONFIG} or {WEIGHTS}: {error}") from error
        return cls._from_tensors(config, tensors, str(name))

    @classmethod
    def from_checkpoint(cls, name: str | Path, config: CLIPConfig | None = None) -> StepAwarePreferenceModel:
        """Load a released checkpoint: a flat pickled dict of tensors whose names start with `model.`.

        `name` is a file, or owner/name/file on the hub; the config is PickScore's ViT-H/14 unless given. Float
        `position_ids` buffers are dropped; anything else that does not fit raises ValueError.
        """
        path = Path(name).expanduser()
        if not path.is_file():
            path = _download(str(name))
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{name!s} is damaged, or holds more than tensors: {str(error).splitlines()[0]}"
            ) from error
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError(f"{name!s} is not a flat dict of tensors")
        kept = {key.removeprefix("model."): value for key, value in tensors.items() if "position_ids" not in key}
        return cls._from_tensors(config or vit_h_config(), kept, str(name))

    @classmethod
    def _from_tensors(cls, config: CLIPConfig, tensors: dict[str, Tensor], name: str) -> StepAwarePreferenceModel:
        with torch.device("meta"):
            model = cls(config)
        expected = model.state_dict()
        problems = [f"missing {key}" for key in expected.keys() - tensors.keys()]
        problems += [f"unexpected {key}" for key in tensors.keys() - expected.keys()]
        problems += [
            f"{key} is {tuple(tensors[key].shape)}, not {tuple(expected[key].shape)}"
            for key in expected.keys() & tensors.keys()
            if tensors[key].shape != expected[key].shape
        ]
        if problems:
            listed = "; ".join(sorted(problems)[:10]) + ("; ..." if len(problems) > 10 else "")
            raise ValueError(f"{name} does not fit its config in {len(problems)} tensors: {listed}")
        model.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
        _restore_position_ids(model)
        return model

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.to_json_file(folder / CONFIG, use_diff=False)
        tensors = {key: value.detach().to(dtype).contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    def text_features(
        self, input_ids: Int[Tensor, "b l"], attention_mask: Int[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b e"]:
        """Unit text embeddings, fp32."""
        pooled = self.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return F.normalize(self.text_projection(pooled).float(), dim=-1)

    def image_features(self, pixel_values: Float[Tensor, "b 3 s s"], t: Int[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Unit image embeddings at timestep t, fp32."""
        tower = self.vision_model
        embedding = self.t_embedder(t)
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers:
            parts = layer.adaLN_modulation(embedding)[:, None].chunk(6, dim=-1)
            shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = parts
            normed = layer.layer_norm1(hidden) * (1 + scale_msa) + shift_msa
            hidden = hidden + gate_msa * layer.self_attn(hidden_states=normed, attention_mask=None)[0]
            normed = layer.layer_norm2(hidden) * (1 + scale_mlp) + shift_mlp
            hidden = hidden + gate_mlp * layer.mlp(normed)
        shift, scale = tower.adaLN_modulation(embedding).chunk(2, dim=-1)
        pooled = tower.post_layernorm(hidden[:, 0]) * (1 + scale) + shift
        return F.normalize(self.visual_projection(pooled).float(), dim=-1)

    def score(self, image_features: Float[Tensor, "b e"], text_features: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        """exp(logit_scale) times the cosine of each image with its text, fp32."""
        return self.logit_scale.float().exp() * (image_features * text_features).sum(-1)


class StepAwareJudge:
    """Judges the decoded x̂0 with an SPM at the candidates' own timestep; each distinct prompt is embedded once."""

    def __init__(
        self, model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, decode: Decode, *, max_batch: int | None = None
    ) -> None:
        check_tokenizer(tokenizer, model.config.text_config.vocab_size, "the judge")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.decode = decode
        self.max_batch = max_batch
        """Images decoded and judged at once; None for all."""
        self.num_images = 0
        self.num_texts = 0
        self._text: dict[str, Float[Tensor, " e"]] = {}

    @torch.no_grad()
    def __call__(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_0: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        prompts: list[str],
    ) -> Float[Tensor, " b"]:
        assert len(prompts) == len(x_0)
        self._embed([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text])
        size = self.model.config.vision_config.image_size
        step = self.max_batch or max(1, len(x_0))
        features = [
            self.model.image_features(preprocess(self.decode(x_0[i : i + step]) / 2 + 0.5, size), t[i : i + step])
            for i in range(0, len(x_0), step)
        ]
        self.num_images += len(x_0)
        return self.model.score(torch.cat(features), torch.stack([self._text[prompt] for prompt in prompts]))

    def _embed(self, prompts: list[str]) -> None:
        if not prompts:
            return
        ids = tokenize(self.tokenizer, self.model.config, prompts).to(self.model.logit_scale.device)
        self._text.update(zip(prompts, self.model.text_features(ids), strict=True))
        self.num_texts += len(prompts)


def vit_h_config() -> CLIPConfig:
    """CLIP ViT-H/14 as PickScore_v1 and the released step-aware preference models have it."""
    common = {"num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 1024}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "eos_token_id": 2}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
    return CLIPConfig(text_config={**common, **text}, vision_config={**common, **vision}, projection_dim=1024)


def _download(name: str) -> Path:
    parts = name.split("/")
    if len(parts) != 3:
        raise ValueError(f"there is no file {name!r}, and it is not owner/name/file on the hub")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2]))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(f"{name!r} is no local file, and the hub cannot be reached or does not have it") from error


def _restore_position_ids(model: StepAwarePreferenceModel) -> None:
    """Give the towers the position buffers that no checkpoint holds and the meta device left empty."""
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1])[None]
