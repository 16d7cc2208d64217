"""Every kind of adapter against its formula, written out; trained, saved, read back and resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.adapters import (
    ADAPTER,
    LoraOff,
    LoraWeights,
    TrainedOff,
    add_assistant,
    add_lora,
    assistant_off,
    begin_from_base,
    change_norm,
    limit_norms,
    lora_parameters,
    lora_weights,
    nested_rank,
    start_from,
    use_rank,
)
from trainer.adapters.oft import block_size
from trainer.adapters.starts import olora, pissa
from trainer.adapters.weights import turn
from trainer.contract.errors import RunError
from trainer.contract.settings.adapter import AdapterSettings
from trainer.learned import Weights

from .kinds import KINDS, every_kind


class Two(nn.Module):
    """A linear layer and a convolution, of odd shapes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(12, 20)
        self.conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), self.conv(image)


def settings(kind: str, **more: Any) -> AdapterSettings:
    return AdapterSettings(**{"rank": 2, "alpha": 3.0, **KINDS[kind], **more})


def adapted(kind: str, **more: Any) -> Two:
    """With weights as if it had learnt something."""
    model = Two()
    config = settings(kind, **more)
    add_lora(model, config, "linear|conv", seed=1)
    if config.init in ("pissa", "olora"):
        begin_from_base(model, config, 1)
    model.eval()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in lora_parameters({"": model}).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 7, 12, generator=generator), torch.randn(3, 6, 9, 9, generator=generator)


def raw(model: Two) -> dict[str, dict[str, Tensor]]:
    """{module: {factor: tensor}} of what is trained."""
    found: dict[str, dict[str, Tensor]] = {"linear": {}, "conv": {}}
    for name, parameter in lora_parameters({"": model}).items():
        module, factor = name.removeprefix(".").removesuffix(".weight").split(".")[:2]
        found[module][factor] = parameter.detach()
    return found


def new_weight(kind: str, weight: Tensor, t: dict[str, Tensor], alpha: float, rank: int) -> Tensor:
    """What a layer's weight becomes, from the papers' formulas."""
    flat = weight.flatten(1)
    if kind in ("loha",):
        change = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]) * (alpha / rank)
        return (flat + change).reshape(weight.shape)
    if kind.startswith("lokr"):
        big = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
        blocks = [torch.cat([one * big.flatten(1) for one in row], 1) for row in t["lokr_w1"]]
        scale = alpha / rank if "lokr_w2_a" in t else 1.0  # of whole factors alpha says nothing
        return (flat + torch.cat(blocks) * scale).reshape(weight.shape)
    if kind == "oft":
        turned = []
        for block, rows in zip(t["oft_blocks"], flat.split(t["oft_blocks"].shape[1]), strict=True):
            identity = torch.eye(len(block))
            q = block - block.T
            rotation = (identity + q) @ torch.linalg.inv(identity - q)
            assert torch.allclose(rotation @ rotation.T, identity, atol=1e-5)
            turned.append(rotation.T @ rows)
        return torch.cat(turned).reshape(weight.shape)
    scale = alpha / math.sqrt(rank) if kind == "rslora" else alpha / rank
    change = scale * t["lora_B"].flatten(1) @ t["lora_A"].flatten(1)
    merged = weight + change.reshape(weight.shape)
    if kind != "dora":
        return merged
    columns = [merged[:, i] / merged[:, i].norm() * m for i, m in enumerate(t["lora_magnitude_vector"])]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("pissa", "olora")])
def test_a_layer_computes_what_its_formula_says(kind: str) -> None:
    model, plain = adapted(kind), Two()
    config = settings(kind)
    x, image = inputs()
    ours = model(x, image)
    wide = (config.conv_alpha or config.alpha, config.conv_rank or config.rank)
    with torch.no_grad():
        for module, (alpha, rank) in {"linear": (config.alpha, config.rank), "conv": wide}.items():
            layer = plain.get_submodule(module)
            assert isinstance(layer.weight, Tensor)
            layer.weight.copy_(new_weight(kind, layer.weight.detach(), raw(model)[module], alpha, rank))
        theirs = plain(x, image)
    for our, their, before in zip(ours, theirs, Two()(x, image), strict=True):
        assert torch.allclose(our, their, atol=2e-5), (our - their).abs().max()
        assert (our - before).abs().max() > 0.05, "it does nothing"


@every_kind
def test_what_is_read_out_is_what_was_trained(kind: str) -> None:
    model, plain = adapted(kind), Two()
    with torch.no_grad():
        for name, weights in lora_weights({"": model}).items():
            layer = plain.get_submodule(name.removeprefix("."))
            assert isinstance(layer.weight, Tensor)
            layer.weight.copy_(weights.applied(layer.weight))
        for ours, theirs in zip(model(*inputs()), plain(*inputs()), strict=True):
            assert torch.allclose(ours, theirs, atol=2e-5)


@every_kind
def test_a_fresh_adapter_changes_nothing_learns_everywhere_and_can_be_switched_off(kind: str) -> None:
    before = Two()(*inputs())
    model, config = Two(), settings(kind)
    add_lora(model, config, "linear|conv", seed=1)
    if config.init in ("pissa", "olora"):
        begin_from_base(model, config, 1)
    for ours, theirs in zip(model(*inputs()), before, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    trained = lora_parameters({"": model})
    assert {p for n, p in model.named_parameters() if p.requires_grad} == set(trained.values())
    optimizer = torch.optim.AdamW(trained.values(), lr=0.05)
    for _ in range(2):
        sum(y.square().mean() for y in model(*inputs())).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
    start = Two()
    add_lora(start, config, "linear|conv", seed=1)
    if config.init in ("pissa", "olora"):
        begin_from_base(start, config, 1)
    for name, parameter in lora_parameters({"": start}).items():
        assert not torch.equal(parameter, trained[name]), f"{name} was never trained"
    model.eval()
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(model(*inputs()), before, strict=True))
    with LoraOff(model):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model(*inputs()), before, strict=True))
    assert {p for n, p in model.named_parameters() if p.requires_grad} == set(trained.values())


@every_kind
def test_how_far_a_weight_has_moved(kind: str) -> None:
    model = adapted(kind)
    for name, weights in lora_weights({"": model}).items():
        layer = model.get_submodule(name.removeprefix("."))
        weight = layer.get_base_layer().weight.detach()  # type: ignore[operator, union-attr]
        moved = float((weights.applied(weight) - weight).norm())
        assert change_norm(layer) == pytest.approx(moved, rel=1e-4) and moved > 0.1


def test_rslora_is_alpha_over_the_root_of_the_rank() -> None:
    weights = lora_weights({"": adapted("rslora", rank=16, alpha=8.0)})
    assert weights[".linear"].scale == pytest.approx(8 / 4)
    assert weights[".linear"].alpha == pytest.approx(32)  # what a file says, so that alpha / rank is that


def test_the_scale_of_kohyas_vectors() -> None:
    """Rank 4, alpha 1: ΔW = .25 B A."""
    lora = LoraWeights(torch.ones(4, 3), torch.ones(2, 4), 1.0)
    assert torch.equal(lora.delta(), torch.ones(2, 3))


def test_pissa_takes_the_largest_directions_and_olora_an_orthogonal_basis() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(weight)
    best = u[:, :3] * s[:3] @ v[:3]
    down, up = pissa(weight, 3, scale=0.5)
    assert torch.allclose(0.5 * up @ down, best, atol=1e-4)
    down, up = olora(weight, 3)
    assert torch.allclose(up.T @ up, torch.eye(3), atol=1e-5)
    assert torch.allclose(up @ down, up @ up.T @ weight, atol=1e-4)


def test_a_large_layer_is_decomposed_by_random_projections() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(200, 6, generator=generator) @ torch.randn(6, 150, generator=generator)
    torch.manual_seed(0)
    down, up = pissa(low + 0.01 * torch.randn(200, 150, generator=generator), 6, scale=1.0)
    assert (up @ down - low).norm() / low.norm() < 0.01


def test_blocks_of_an_oft_divide_the_outputs() -> None:
    assert [block_size(20, 4), block_size(20, 6), block_size(8, 64), block_size(7, 3)] == [4, 5, 8, 1]
    far = 5 * torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1))
    rotations = turn(far) + torch.eye(6)
    assert torch.allclose(rotations @ rotations.mT, torch.eye(6).expand(3, 6, 6), atol=1e-4)
    assert torch.linalg.det(rotations).allclose(torch.ones(3), atol=1e-4)


# Dropout, nested ranks, norms ---------------------------------------------------------------------------


def test_rank_dropout_leaves_out_whole_ranks_of_each_picture() -> None:
    model = adapted("lora", rank=8, rank_dropout=0.5)
    seen = []
    model.linear.lora_A[ADAPTER].register_forward_hook(lambda *a: seen.append(a[2].detach()))  # type: ignore
    x, image = inputs()
    model(x, image)
    model.train()
    torch.manual_seed(0)
    first = model(x, image)[0]
    whole, dropped = seen
    ratio = dropped / whole
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))  # the same for every position
    assert set(ratio[:, 0].unique().round(decimals=3).tolist()) == {0.0, 2.0}  # scaled by 1 / (1 - p)
    assert not torch.equal(ratio[0, 0], ratio[1, 0]) or not torch.equal(ratio[1, 0], ratio[2, 0])
    torch.manual_seed(0)
    assert torch.equal(model(x, image)[0], first)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "oft"])
def test_module_dropout_leaves_out_whole_modules(kind: str) -> None:
    model, plain = adapted(kind, module_dropout=0.5), Two()
    x, image = inputs()
    whole = model(x, image)[0]
    model.train()
    found = set()
    for seed in range(12):
        torch.manual_seed(seed)
        y = model(x, image)[0]
        base = torch.allclose(y, plain(x, image)[0], atol=1e-5)
        assert base or torch.allclose(y, whole, atol=1e-5)
        found.add(base)
    assert found == {True, False}


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft"])
def test_rank_dropout_of_the_other_kinds(kind: str) -> None:
    """Of the outputs of a change; of an OFT's blocks."""
    model, plain = adapted(kind, rank_dropout=0.4), Two()
    x, image = inputs()
    model.train()
    torch.manual_seed(1)
    change = (model(x, image)[0] - plain(x, image)[0]).abs().amax(dim=(0, 1))
    assert 0 < (change < 1e-6).sum() < len(change)


def test_nested_ranks_are_a_function_of_seed_and_step() -> None:
    drawn = [nested_rank(7, step, 12, 4) for step in range(300)]
    assert drawn == [nested_rank(7, step, 12, 4) for step in range(300)]
    assert set(drawn) == {4, 8, 12} and all(70 < drawn.count(rank) < 130 for rank in (4, 8, 12))
    assert drawn != [nested_rank(8, step, 12, 4) for step in range(300)]


def test_a_dylora_that_is_cut_is_the_nested_module() -> None:
    model, plain = adapted("dylora"), Two()
    model.train()
    use_rank({"": model}, ADAPTER, 2)
    ours = model(*inputs())
    sum(y.square().mean() for y in ours).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        for name, weights in lora_weights({"": model}).items():
            cut = weights.cut(2)
            assert cut.rank == 2 and cut.scale == weights.scale
            layer = plain.get_submodule(name.removeprefix("."))
            layer.weight.copy_(cut.applied(layer.weight))  # type: ignore[arg-type, operator]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, plain(*inputs()), strict=True))
    for name, parameter in lora_parameters({"": model}).items():
        assert parameter.grad is not None
        ranks = parameter.grad.flatten(1) if "lora_A" in name else parameter.grad.flatten(1).T
        assert ranks[:2].any() and not ranks[2:].any()


@pytest.mark.parametrize("kind", ["lora", "locon", "loha", "lokr", "dora", "rslora"])
def test_max_norm_scales_what_is_too_long_and_nothing_else(kind: str) -> None:
    model = adapted(kind)
    before = {name: w.delta() for name, w in lora_weights({"": model}).items()}
    norms = sorted(float(delta.norm()) for delta in before.values())
    limit = sum(norms) / 2
    assert limit_norms({"": model}, limit) == 1
    for name, weights in lora_weights({"": model}).items():
        norm = float(before[name].norm())
        expected = before[name] * (min(norm, limit) / norm)
        assert torch.allclose(weights.delta(), expected, atol=1e-5)


def test_kohyas_max_norm_multiplies_both_factors_by_the_root() -> None:
    model = adapted("lora")
    factors = {name: parameter.detach().clone() for name, parameter in lora_parameters({"": model}).items()}
    norms = {name: float(w.delta().norm()) for name, w in lora_weights({"": model}).items()}
    limit = 0.5 * min(norms.values())
    assert limit_norms({"": model}, limit) == 2
    for name, parameter in lora_parameters({"": model}).items():
        ratio = limit / norms[name.partition(".lora_")[0]]
        assert torch.allclose(parameter, factors[name] * ratio**0.5, rtol=1e-4)


def test_a_lora_begins_a_dora_without_a_change() -> None:
    model = Two()
    add_lora(model, settings("dora"), "linear|conv", seed=1)
    plain = lora_weights({"": adapted("lora")})
    start_from({"": model}, plain)
    bare = {name: replace(weights, magnitude=None) for name, weights in plain.items()}
    weight = Two().linear.weight.detach()
    expected = bare[".linear"].applied(weight)
    assert torch.allclose(lora_weights({"": model})[".linear"].applied(weight), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft", "dylora"])
def test_what_is_dropped_is_dropped_again_when_activations_are_recomputed(kind: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = adapted(kind, rank_dropout=0.3, module_dropout=0.3)
        model.train()
        use_rank({"": model}, ADAPTER, 2)
        torch.manual_seed(4)
        outputs = checkpoint(model, *inputs(), use_reentrant=False) if recompute else model(*inputs())
        sum(y.square().mean() for y in outputs).backward()
        gradients.append([p.grad for p in lora_parameters({"": model}).values()])
    assert any(one is not None and one.any() for one in gradients[0])
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


def test_an_assistant_may_be_on_more_layers() -> None:
    """Its layers have no norm to limit, and none that is measured."""
    model = Two()
    add_lora(model, settings("lora"), "conv", seed=1)
    model.conv.lora_B[ADAPTER].weight.data.fill_(1.0)  # type: ignore[union-attr,index]
    add_assistant(model, {"linear": LoraWeights(torch.ones(3, 12), torch.ones(20, 3), 1.5)})
    assert limit_norms({"": model}, 0.5) == 1
    assert Weights({"unet": model}).measure()["norm"] == pytest.approx(0.5, rel=1e-4)
    model.conv.lora_B[ADAPTER].weight.data.fill_(math.inf)  # type: ignore[union-attr,index]
    with pytest.raises(RunError, match="weights became infinite"):
        Weights({"unet": model}).measure()


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
def test_beside_an_assistant(kind: str) -> None:
    """The assistant works while training and not while drawing; only what is trained has gradients."""
    model, plain = adapted(kind), Two()
    trained = model(*inputs())[0]
    generator = torch.Generator().manual_seed(2)
    lora = LoraWeights(torch.randn(3, 12, generator=generator), torch.randn(20, 3, generator=generator), 1.5)
    add_assistant(model, {"linear": lora})
    x, image = inputs()
    # What it adds is the same whatever is trained: it reads the layer's inputs as they are.
    assert torch.allclose(model(x, image)[0], trained + nn.functional.linear(x, lora.delta()), atol=1e-4)
    with assistant_off(model):
        assert torch.allclose(model(x, image)[0], trained, atol=1e-5)
    with TrainedOff(model), torch.no_grad():
        plain.linear.weight.add_(lora.delta())
        assert torch.allclose(model(x, image)[0], plain(x, image)[0], atol=1e-5)
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert free == {name.removeprefix(".") for name in lora_parameters({"": model})}
