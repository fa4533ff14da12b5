"""The step-aware preference model: CLIP at initialisation, its adaLN by hand, its size, half precision, memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import normal, same_weights
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.judges.spm import StepAwarePreferenceModel, timestep_embedding, vit_h_config
from stepalign.models.clip import tokenize

PROMPTS = ["a red ring", "two blue squares on a green background", "a dot"]
TIMESTEPS = [0, 1, 501, 999]


def pixels(b: int, seed: int = 0) -> Tensor:
    return normal(b, 3, 32, 32, seed=seed, dtype=torch.float32)


def at(t: int, b: int) -> Tensor:
    return torch.full((b,), t)


@pytest.fixture
def ids(tokenizer: CLIPTokenizer, tiny_clip: CLIPModel) -> Tensor:
    return tokenize(tokenizer, tiny_clip.config, PROMPTS)


@pytest.fixture
def modulated(tiny_spm_folder: Path) -> StepAwarePreferenceModel:
    return StepAwarePreferenceModel.from_pretrained(tiny_spm_folder)


@pytest.mark.parametrize("b", [1, 8, 1000])
def test_at_initialisation_scores_are_clips_logits_at_every_timestep(tiny_clip: CLIPModel, ids: Tensor, b: int) -> None:
    """An image for each of the timesteps 0 ... 999, b at once."""
    model, images = StepAwarePreferenceModel.from_clip(tiny_clip).eval(), pixels(1000)
    with torch.no_grad():
        text = model.text_features(ids[:1]).expand(b, -1)
        scores = [model.score(model.image_features(images[t], t), text) for t in torch.arange(1000).split(b)]
        logits = tiny_clip(input_ids=ids[:1], pixel_values=images).logits_per_image[:, 0]
    torch.testing.assert_close(torch.cat(scores), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("b", [1, 8])
@pytest.mark.parametrize("t", TIMESTEPS)
def test_at_initialisation_image_features_are_clips(tiny_clip: CLIPModel, t: int, b: int) -> None:
    with torch.no_grad():
        features = StepAwarePreferenceModel.from_clip(tiny_clip).image_features(pixels(b), at(t, b))
        expected = F.normalize(tiny_clip.get_image_features(pixel_values=pixels(b)).pooler_output, dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_at_initialisation_text_features_are_clips(tiny_clip: CLIPModel, ids: Tensor) -> None:
    with torch.no_grad():
        features = StepAwarePreferenceModel.from_clip(tiny_clip).text_features(ids)
        expected = F.normalize(tiny_clip.get_text_features(input_ids=ids).pooler_output, dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_a_model_built_from_a_config_alone_does_not_see_the_timestep_either(tiny_clip: CLIPModel) -> None:
    model = StepAwarePreferenceModel(tiny_clip.config).eval()
    assert torch.equal(model.image_features(pixels(2), at(0, 2)), model.image_features(pixels(2), at(999, 2)))


def test_initialisation_is_that_of_the_table(tiny_clip: CLIPModel) -> None:
    """Modulations 0 but for both gates' biases, chunks 2 and 5 of six, which are 1; embedder weights N(0, .02²)."""
    model = StepAwarePreferenceModel.from_clip(tiny_clip)
    width = tiny_clip.config.vision_config.hidden_size
    gates = torch.tensor([0, 0, 1, 0, 0, 1.0]).repeat_interleave(width)
    for layer in model.vision_model.encoder.layers:
        assert not layer.adaLN_modulation[1].weight.any()
        assert torch.equal(layer.adaLN_modulation[1].bias, gates)
    assert not model.vision_model.adaLN_modulation[1].weight.any()
    assert not model.vision_model.adaLN_modulation[1].bias.any()
    for i in (0, 2):
        assert not model.t_embedder.mlp[i].bias.any()
    assert model.t_embedder.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_timestep_becomes_cosines_then_sines_of_falling_frequency() -> None:
    """Entry i is cos(t · 10000^(-i/128)), entry 128 + i the sine; at t = 0 all cosines are 1."""
    t = torch.tensor([0, 1, 501, 999])
    embedding = timestep_embedding(t)
    assert embedding.dtype == torch.float32
    for row, value in enumerate(t.tolist()):
        for i in (0, 1, 64, 127):
            angle = value * 10000 ** (-i / 128)
            assert embedding[row, i].item() == pytest.approx(math.cos(angle), abs=2e-4)
            assert embedding[row, 128 + i].item() == pytest.approx(math.sin(angle), abs=2e-4)


def attention_by_hand(layer: torch.nn.Module, x: Tensor, heads: int) -> Tensor:
    q, k, v = (
        projection(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return layer.out_proj((weights @ v).transpose(1, 2).flatten(-2))


def image_features_by_hand(model: StepAwarePreferenceModel, image: Tensor, t: Tensor) -> Tensor:
    """The vision tower line by line; modulations are rows d·i to d·(i+1) of Linear(SiLU(embedding))."""
    tower, config = model.vision_model, model.config.vision_config
    d = config.hidden_size
    condition = F.silu(model.t_embedder.mlp[2](F.silu(model.t_embedder.mlp[0](timestep_embedding(t)))))
    patches = tower.embeddings.patch_embedding(image).flatten(2).transpose(1, 2)
    cls = tower.embeddings.class_embedding.expand(len(image), 1, -1)
    x = tower.pre_layrnorm(torch.cat([cls, patches], 1) + tower.embeddings.position_embedding.weight)
    for layer in tower.encoder.layers:
        rows = (condition @ layer.adaLN_modulation[1].weight.T + layer.adaLN_modulation[1].bias)[:, None]
        shift_msa, scale_msa, gate_msa = rows[..., :d], rows[..., d : 2 * d], rows[..., 2 * d : 3 * d]
        shift_mlp, scale_mlp, gate_mlp = rows[..., 3 * d : 4 * d], rows[..., 4 * d : 5 * d], rows[..., 5 * d :]
        y = F.layer_norm(x, (d,), layer.layer_norm1.weight, layer.layer_norm1.bias, config.layer_norm_eps)
        x = x + gate_msa * attention_by_hand(layer.self_attn, y * (1 + scale_msa) + shift_msa, 2)
        y = F.layer_norm(x, (d,), layer.layer_norm2.weight, layer.layer_norm2.bias, config.layer_norm_eps)
        x = x + gate_mlp * layer.mlp.fc2(F.gelu(layer.mlp.fc1(y * (1 + scale_mlp) + shift_mlp)))
    rows = condition @ tower.adaLN_modulation[1].weight.T + tower.adaLN_modulation[1].bias
    pooled = tower.post_layernorm(x[:, 0]) * (1 + rows[:, d:]) + rows[:, :d]
    return F.normalize(model.visual_projection(pooled), dim=-1)


def randomize(linear: torch.nn.Linear, rows: slice) -> None:
    with torch.no_grad():
        linear.weight[rows] = normal(*linear.weight[rows].shape, seed=1, dtype=torch.float32)
        linear.bias[rows] = normal(*linear.bias[rows].shape, seed=2, dtype=torch.float32)


@pytest.mark.parametrize(("where", "chunk"), [*(("block", chunk) for chunk in range(6)), ("head", 0), ("head", 1)])
def test_each_modulation_acts_where_its_chunk_says(tiny_clip: CLIPModel, where: str, chunk: int) -> None:
    """Shift, scale, gate of the attention, then of the MLP; for the head shift, scale. One chunk set at a time."""
    model = StepAwarePreferenceModel.from_clip(tiny_clip).requires_grad_(False)
    plain = model.image_features(pixels(3), torch.tensor([0, 501, 999]))
    owner = model.vision_model.encoder.layers[1] if where == "block" else model.vision_model
    randomize(owner.adaLN_modulation[1], slice(16 * chunk, 16 * (chunk + 1)))
    features = model.image_features(pixels(3), torch.tensor([0, 501, 999]))
    expected = image_features_by_hand(model, pixels(3), torch.tensor([0, 501, 999]))
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-6)
    assert (features - plain).norm(dim=1).min() > 1e-3


def test_all_modulations_together_are_those_computed_by_hand(modulated: StepAwarePreferenceModel) -> None:
    t = torch.tensor([0, 1, 501, 999])
    with torch.no_grad():
        expected = image_features_by_hand(modulated, pixels(4), t)
        torch.testing.assert_close(modulated.image_features(pixels(4), t), expected, rtol=0, atol=2e-6)


def test_a_modulated_model_sees_the_timestep(modulated: StepAwarePreferenceModel) -> None:
    with torch.no_grad():
        features = [modulated.image_features(pixels(1), at(t, 1)) for t in (0, 501)]
    assert (features[0] - features[1]).norm() > 1e-4


def test_every_image_of_a_batch_has_its_own_timestep(modulated: StepAwarePreferenceModel) -> None:
    t = torch.tensor([0, 501, 999])
    with torch.no_grad():
        together = modulated.image_features(pixels(3), t)
        alone = torch.cat([modulated.image_features(pixels(3)[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_the_released_size_has_1306176001_parameters_in_980_tensors() -> None:
    with torch.device("meta"):
        model = StepAwarePreferenceModel(vit_h_config())
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_306_176_001
    assert len(model.state_dict()) == 980


# Half precision


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def half(tiny_spm_folder: Path, request: pytest.FixtureRequest) -> StepAwarePreferenceModel:
    return StepAwarePreferenceModel.from_pretrained(tiny_spm_folder, dtype=request.param)


def scores_of(model: StepAwarePreferenceModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.score(model.image_features(pixels(3), torch.tensor([0, 501, 999])), model.text_features(ids))


def test_in_half_precision_features_and_scores_are_fp32_and_near_the_exact_ones(
    half: StepAwarePreferenceModel, modulated: StepAwarePreferenceModel, ids: Tensor
) -> None:
    with torch.no_grad():
        features = [half.image_features(pixels(3), at(501, 3)), half.text_features(ids)]
        exact = [modulated.image_features(pixels(3), at(501, 3)), modulated.text_features(ids)]
    for feature, expected in zip(features, exact, strict=True):
        assert feature.dtype == torch.float32
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)
        torch.testing.assert_close(feature, expected, rtol=0, atol=0.02)
    assert scores_of(half, ids).dtype == torch.float32
    torch.testing.assert_close(scores_of(half, ids), scores_of(modulated, ids), rtol=0, atol=0.3)


def test_in_half_precision_the_scale_is_not_rounded(
    half: StepAwarePreferenceModel, modulated: StepAwarePreferenceModel
) -> None:
    """ln(1/.07) = 2.6593 is 2.6562 in bf16: every score would be off by a third of a percent."""
    unit = F.normalize(normal(4, 8, dtype=torch.float32), dim=-1)
    assert half.logit_scale.dtype == torch.float32
    assert torch.equal(half.score(unit, unit), modulated.score(unit, unit))


def test_in_half_precision_sinusoids_are_rounded_only_once_computed(half: StepAwarePreferenceModel) -> None:
    """998 and 999 are both 1000 in bf16; a sinusoid of that, or of rounded frequencies, would be another."""
    seen: list[Tensor] = []
    half.t_embedder.mlp[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    t = torch.arange(1000)
    embedded = half.t_embedder(t)
    assert torch.equal(seen[0], timestep_embedding(t).to(half.visual_projection.weight.dtype))
    assert (seen[0][998] - seen[0][999]).abs().max() > 0.4
    assert not torch.equal(embedded[998], embedded[999])


def test_a_model_cast_to_half_precision_still_scores_in_fp32(modulated: StepAwarePreferenceModel, ids: Tensor) -> None:
    exact = scores_of(modulated, ids)
    scores = scores_of(modulated.to(torch.bfloat16), ids)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=0, atol=1.0)


# Without timesteps


def test_without_timestep_conditioning_it_is_clip_tensor_by_tensor(tiny_clip: CLIPModel) -> None:
    blind = StepAwarePreferenceModel.from_clip(tiny_clip, timestep_conditioning=False)
    assert same_weights(blind, tiny_clip)


def test_without_timestep_conditioning_scores_are_clips_logits_and_ignore_the_timestep(
    tiny_clip: CLIPModel, ids: Tensor
) -> None:
    blind = StepAwarePreferenceModel.from_clip(tiny_clip, timestep_conditioning=False)
    with torch.no_grad():
        expected = tiny_clip(input_ids=ids, pixel_values=pixels(3)).logits_per_text.diagonal()
        early, late = (blind.image_features(pixels(3), at(t, 3)) for t in (0, 999))
        torch.testing.assert_close(blind.score(early, blind.text_features(ids)), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(early, late)


# Memory


@pytest.mark.parametrize("timestep_conditioning", [True, False])
def test_gradient_checkpointing_runs_every_block_twice_to_the_same_gradients(
    tiny_clip: CLIPModel, ids: Tensor, timestep_conditioning: bool
) -> None:
    results = []
    for times in (1, 2):
        torch.manual_seed(0)
        model = StepAwarePreferenceModel.from_clip(tiny_clip, timestep_conditioning=timestep_conditioning).train()
        if times == 2:
            model.enable_gradient_checkpointing()
        ran: list[str] = []
        for tower in (model.vision_model, model.text_model):
            for layer in tower.encoder.layers:
                layer.layer_norm1.register_forward_hook(lambda module, *_, ran=ran: ran.append(str(id(module))))
        scores = model.score(model.image_features(pixels(3), torch.tensor([0, 501, 999])), model.text_features(ids))
        scores.square().sum().backward()
        assert sorted(map(ran.count, ran)) == 4 * times * [times]
        results.append([scores.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_gradient_checkpointing_costs_nothing_without_gradients(modulated: StepAwarePreferenceModel) -> None:
    with torch.no_grad():
        plain = modulated.image_features(pixels(2), at(501, 2))
        modulated.enable_gradient_checkpointing()
        assert torch.equal(modulated.image_features(pixels(2), at(501, 2)), plain)


def test_an_unknown_preprocessing_is_refused(tiny_clip: CLIPModel) -> None:
    """Here beartype is faster than the ValueError."""
    with pytest.raises((ValueError, TypeError), match="clamp_first"):
        StepAwarePreferenceModel.from_clip(tiny_clip, preprocessing="clamp_first")
