"""One network in three roles: what each predicts, what can be trained, and what switching between them leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import copied_policy
from diffusers import UNet2DConditionModel
from torch import Tensor

from stepalign.core.batch import Conditioning
from stepalign.core.choices import Role
from stepalign.models.base import BaseModel
from stepalign.models.policy import GuidedNetwork, LoraPolicy

ROLES: tuple[Role, ...] = ("policy", "ema", "reference")
Inputs = tuple[Tensor, Tensor, Conditioning]


@pytest.fixture
def inputs(tiny_sd: BaseModel) -> Inputs:
    """Three latents, their timesteps and conditioning."""
    x_t = torch.randn(3, *tiny_sd.latent_shape, generator=torch.Generator().manual_seed(0))
    return x_t, torch.tensor([951, 501, 1]), tiny_sd.encode(["a cat", "a dog", "two boats"])


@pytest.fixture(scope="module")
def trained(tiny_sd: BaseModel) -> LoraPolicy:
    """A policy after training, under guidance 2; for looking at."""
    return copied_policy(tiny_sd, trained=True)


def base_prediction(model: BaseModel, inputs: Inputs, *, guidance_scale: float) -> Tensor:
    """What the network without adapters predicts under guidance, half by half."""
    x_t, t, cond = inputs
    negative = model.negative().tokens.expand(len(x_t), -1, -1)
    with torch.no_grad():
        uncond = model.network(x_t, t, encoder_hidden_states=negative).sample
        conditional = model.network(x_t, t, encoder_hidden_states=cond.tokens).sample
    return uncond + guidance_scale * (conditional - uncond)


def gradients(policy: LoraPolicy) -> dict[str, Tensor | None]:
    return {name: tensor.grad for name, tensor in policy.guided.network.named_parameters()}


# Adapters


def test_before_training_every_role_is_the_base_model(tiny_sd: BaseModel, inputs: Inputs) -> None:
    policy = copied_policy(tiny_sd)
    bare = GuidedNetwork(tiny_sd.network, negative=tiny_sd.negative(), guidance_scale=2.0)
    with torch.no_grad():
        expected = bare(*inputs)
        for role in ROLES:
            assert torch.equal(policy.predict(*inputs, role=role), expected)


def test_stable_diffusion_15_gets_128_adapted_modules_of_797184_parameters_at_rank_4() -> None:
    with torch.device("meta"):
        network = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        negative = Conditioning(torch.zeros(1, 77, 768))
        policy = LoraPolicy(GuidedNetwork(network, negative=negative, guidance_scale=5.0), rank=4, seed=0)
    assert sum(parameter.numel() for name, parameter in network.named_parameters() if "lora" not in name) == 859_520_964
    assert len(policy.adapter) == 2 * 128
    assert sum(tensor.numel() for tensor in policy.adapter.values()) == 797_184
    assert {name: tensor.shape for name, tensor in policy.ema.items()} == {
        name: tensor.shape for name, tensor in policy.adapter.items()
    }


def test_adapters_start_gaussian_with_deviation_one_over_rank_and_without_effect(tiny_sd: BaseModel) -> None:
    policy = copied_policy(tiny_sd, rank=4)
    downs = torch.cat([tensor.flatten() for name, tensor in policy.adapter.items() if "lora_A" in name])
    ups = [tensor for name, tensor in policy.adapter.items() if "lora_B" in name]
    assert downs.std().item() == pytest.approx(1 / 4, rel=0.05)
    assert downs.mean().item() == pytest.approx(0, abs=0.02)
    assert not any(tensor.any() for tensor in ups)


def test_the_average_starts_as_a_copy_of_the_policy(tiny_sd: BaseModel) -> None:
    policy = copied_policy(tiny_sd)
    assert policy.ema.keys() == policy.adapter.keys()
    assert all(torch.equal(policy.ema[name], tensor) for name, tensor in policy.adapter.items())
    assert all(policy.ema[name] is not tensor for name, tensor in policy.adapter.items())


def test_the_seed_decides_the_adapter_and_nothing_else_does(tiny_sd: BaseModel) -> None:
    before = torch.get_rng_state()
    first = copied_policy(tiny_sd, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = copied_policy(tiny_sd, seed=1), copied_policy(tiny_sd, seed=2)
    assert all(torch.equal(again.adapter[name], tensor) for name, tensor in first.adapter.items())
    assert not any(torch.equal(other.adapter[name], tensor) for name, tensor in first.adapter.items() if tensor.any())


# Guidance


def test_guidance_goes_beyond_the_conditional_prediction(tiny_sd: BaseModel, inputs: Inputs) -> None:
    policy = copied_policy(tiny_sd, guidance_scale=5.0)
    expected = base_prediction(tiny_sd, inputs, guidance_scale=5.0)
    predicted = policy.predict(*inputs, role="policy")
    assert torch.allclose(predicted, expected, atol=1e-5)
    assert not torch.allclose(predicted, base_prediction(tiny_sd, inputs, guidance_scale=4.9), atol=1e-5)


def test_guidance_1_runs_the_conditional_half_only(tiny_sd: BaseModel, inputs: Inputs) -> None:
    policy = copied_policy(tiny_sd, guidance_scale=1.0)
    sizes: list[int] = []
    policy.guided.network.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    expected = base_prediction(tiny_sd, inputs, guidance_scale=1.0)
    assert torch.allclose(policy.predict(*inputs, role="policy"), expected, atol=1e-6)
    assert sizes == [3]
    assert policy.calls == {"policy": 3}


def test_guidance_counts_twice_and_runs_both_halves_in_one_pass(tiny_sd: BaseModel, inputs: Inputs) -> None:
    policy = copied_policy(tiny_sd, guidance_scale=2.0)
    sizes: list[int] = []
    policy.guided.network.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    for role in ROLES:
        policy.predict(*inputs, role=role)
    assert sizes == [6, 6, 6]
    assert policy.calls == dict.fromkeys(ROLES, 6)


def test_prediction_in_slices_changes_nothing(tiny_sd: BaseModel, inputs: Inputs) -> None:
    policy = copied_policy(tiny_sd, trained=True)
    sizes: list[int] = []
    with torch.no_grad():
        whole = policy.predict(*inputs, role="ema")
        policy.guided.max_batch = 2
        policy.guided.network.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
        sliced = policy.predict(*inputs, role="ema")
    assert torch.allclose(sliced, whole, atol=1e-5)
    assert sizes == [4, 2]


# Roles


def test_the_reference_stays_the_untouched_network_whatever_was_trained(
    tiny_sd: BaseModel, trained: LoraPolicy, inputs: Inputs
) -> None:
    bare = GuidedNetwork(copy.deepcopy(tiny_sd.network), negative=tiny_sd.negative(), guidance_scale=2.0)
    with torch.no_grad():
        reference = trained.predict(*inputs, role="reference")
        assert torch.equal(reference, bare(*inputs))
        assert (trained.predict(*inputs, role="policy") - reference).abs().max() > 0.01
        assert (trained.predict(*inputs, role="ema") - reference).abs().max() > 0.01


def test_each_role_predicts_with_its_own_adapter(tiny_sd: BaseModel, trained: LoraPolicy, inputs: Inputs) -> None:
    swapped = copied_policy(tiny_sd)
    swapped.load(adapter=trained.ema, ema=trained.adapter)
    with torch.no_grad():
        assert torch.equal(trained.predict(*inputs, role="policy"), swapped.predict(*inputs, role="ema"))
        assert torch.equal(trained.predict(*inputs, role="ema"), swapped.predict(*inputs, role="policy"))
        assert not torch.equal(trained.predict(*inputs, role="policy"), trained.predict(*inputs, role="ema"))


def test_a_denoiser_predicts_in_its_role(trained: LoraPolicy, inputs: Inputs) -> None:
    with torch.no_grad():
        for role in ROLES:
            assert torch.equal(trained.denoiser(role)(*inputs), trained.predict(*inputs, role=role))


def test_gradients_reach_all_of_the_policys_adapter_and_nothing_else(tiny_sd: BaseModel, inputs: Inputs) -> None:
    policy = copied_policy(tiny_sd, trained=True)
    policy.predict(*inputs, role="policy").square().sum().backward()
    own = {id(tensor) for tensor in policy.adapter.values()}
    for name, tensor in policy.guided.network.named_parameters():
        assert (tensor.grad is not None and bool(tensor.grad.any())) == (id(tensor) in own), name


@pytest.mark.parametrize("role", ["ema", "reference"])
def test_other_roles_give_no_gradients(trained: LoraPolicy, inputs: Inputs, role: Role) -> None:
    assert not trained.predict(*inputs, role=role).requires_grad


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_other_roles_between_forward_and_backward_change_no_gradient(
    tiny_sd: BaseModel, inputs: Inputs, checkpointing: bool
) -> None:
    results = []
    for others in ((), ("reference", "ema")):
        policy = copied_policy(tiny_sd, trained=True)
        if checkpointing:
            policy.guided.network.enable_gradient_checkpointing()
        predicted = policy.predict(*inputs, role="policy")
        for role in others:
            policy.predict(*inputs, role=role)
        predicted.square().sum().backward()
        results.append(gradients(policy))
    plain, disturbed = results
    assert any(gradient is not None for gradient in plain.values())
    for name, gradient in plain.items():
        assert gradient is None or torch.equal(gradient, disturbed[name]), name


def test_checkpointing_recomputes_and_changes_no_gradient(tiny_sd: BaseModel, inputs: Inputs) -> None:
    results, passes = [], []
    for checkpointing in (False, True):
        policy = copied_policy(tiny_sd, trained=True)
        if checkpointing:
            policy.guided.network.enable_gradient_checkpointing()
        count: list[int] = []
        resnet = policy.guided.network.up_blocks[1].resnets[0]
        resnet.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        policy.predict(*inputs, role="policy").square().sum().backward()
        results.append(gradients(policy))
        passes.append(len(count))
    assert passes == [1, 2]
    for name, gradient in results[0].items():
        assert gradient is None or torch.allclose(gradient, results[1][name], rtol=1e-4, atol=1e-5), name


# The average, and saved weights


def test_the_average_moves_a_tenth_of_the_way_at_decay_09(tiny_sd: BaseModel) -> None:
    policy = copied_policy(tiny_sd, trained=True)
    expected = {name: 0.9 * policy.ema[name] + 0.1 * tensor for name, tensor in policy.adapter.items()}
    adapter = {name: tensor.clone() for name, tensor in policy.adapter.items()}
    policy.update_ema(0.9)
    assert all(torch.allclose(policy.ema[name], tensor, atol=1e-7) for name, tensor in expected.items())
    assert all(torch.equal(policy.adapter[name], tensor) for name, tensor in adapter.items())


def test_loaded_weights_predict_as_they_did(tiny_sd: BaseModel, trained: LoraPolicy, inputs: Inputs) -> None:
    fresh = copied_policy(tiny_sd, seed=9)
    fresh.load(adapter=trained.adapter, ema=trained.ema)
    with torch.no_grad():
        for role in ROLES:
            assert torch.equal(fresh.predict(*inputs, role=role), trained.predict(*inputs, role=role))


def test_weights_of_another_rank_are_refused(tiny_sd: BaseModel) -> None:
    policy, other = copied_policy(tiny_sd, rank=2), copied_policy(tiny_sd, rank=3)
    with pytest.raises(ValueError, match="another network or rank"):
        policy.load(adapter=other.adapter, ema=other.ema)


def test_a_network_without_the_wanted_layers_is_refused(tiny_sd: BaseModel) -> None:
    guided = GuidedNetwork(copy.deepcopy(tiny_sd.network), negative=tiny_sd.negative(), guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"no_such_layer"):
        LoraPolicy(guided, rank=2, seed=0, target_modules=("no_such_layer",))


def test_a_rank_below_1_is_refused(tiny_sd: BaseModel) -> None:
    with pytest.raises(ValueError, match="lora rank must be at least 1, got 0"):
        copied_policy(tiny_sd, rank=0)


def test_guidance_below_1_is_refused(tiny_sd: BaseModel) -> None:
    with pytest.raises(ValueError, match=r"guidance_scale must be at least 1 .* got 0\.5"):
        copied_policy(tiny_sd, guidance_scale=0.5)
