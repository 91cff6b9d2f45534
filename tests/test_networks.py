"""The networks of Kim et al. 2017 and the light one: counts, contract, recurrence, reach."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests.small import SMALL_LITE, scramble
from vs_deblur_models.blocks import DynamicTemporalBlending, ResBlock
from vs_deblur_models.registry import (
    ENTRIES,
    UnknownCheckpointError,
    build_network,
    detect,
    from_state,
    save_network,
    shapes_of,
)
from vs_deblur_models.spec import State, VideoNetwork
from vs_deblur_models.strcnn import Strcnn, StrcnnConfig, StrcnnDtbLite, StrcnnDtbLiteConfig

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("cnn", {"m": 1}),
    ("strcnn", {"m": 2}),
    ("strcnn_dtb", {"m": 1}),
    ("strcnn_dtb", {"m": 3, "residual": True}),
    ("strcnn_dtb_lite", {"m": 1}),
    ("strcnn_dtb_lite", {"m": 2, **SMALL_LITE}),
]


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_are_the_papers() -> None:
    assert parameters(Strcnn(StrcnnConfig())) == 914_436
    assert parameters(Strcnn(StrcnnConfig(blending=False))) == 709_571


def test_light_network_costs_at_most_25_gflop_at_vga() -> None:
    assert StrcnnDtbLite().spec.flops_per_pixel * 640 * 480 <= 25e9


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_stated_cost_is_the_counted_cost(name: str, config: dict[str, Any]) -> None:
    network = build_network(name, config)
    size = 64
    counted = 0.0

    def count(module: torch.nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal counted
        assert isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
        pixels = inputs[0] if isinstance(module, torch.nn.ConvTranspose2d) else out
        counted += 2.0 * module.weight.numel() * pixels.shape[-1] * pixels.shape[-2]

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(count)
    x = torch.rand(1, 3 * network.spec.window, size, size)
    with torch.no_grad():
        _, state = network.step(x, None)
        counted = 0.0
        network.step(x, state)
    assert counted == pytest.approx(network.spec.flops_per_pixel * size**2, rel=1e-6)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("blending", [True, False])
def test_shapes_for_each_window(m: int, blending: bool) -> None:
    network = Strcnn(StrcnnConfig(m=m, blending=blending))
    assert network.spec.window == 2 * m + 1
    out, state = network.step(torch.rand(2, 3 * (2 * m + 1), 8, 12), None)
    assert out.shape == (2, 3, 8, 12)
    assert [s.shape for s in state] == [(2, 32, 4, 6), (2, 64, 4, 6)][: 1 + blending]


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_network_keeps_its_contract(name: str, config: dict[str, Any]) -> None:
    network = scramble(build_network(name, config))
    assert isinstance(network, VideoNetwork)
    spec = network.spec
    assert spec.network == name
    side = spec.minimum
    out, state = network.step(torch.rand(1, 3 * spec.window, side, side), None)
    assert out.shape == (1, 3, side, side)
    assert out.dtype == torch.float32
    assert bool(state) == spec.is_recurrent


@pytest.mark.parametrize("m", [0, -1, 99])
def test_window_out_of_range_is_refused(m: int) -> None:
    with pytest.raises(ValueError, match="m must be"):
        StrcnnConfig(m=m)


def reference_strcnn_dtb(w: dict[str, Tensor], frames: list[Tensor]) -> list[Tensor]:
    """STRCNN+DTB (m = 1) over a whole clip, written from the description with functional calls."""

    def res(x: Tensor, prefix: str) -> Tensor:
        for i in range(4):
            y = F.conv2d(x, w[f"{prefix}.{i}.conv1.weight"], w[f"{prefix}.{i}.conv1.bias"], 1, 1)
            y = F.conv2d(
                F.relu(y), w[f"{prefix}.{i}.conv2.weight"], w[f"{prefix}.{i}.conv2.bias"], 1, 1
            )
            x = x + y
        return x

    out = []
    blended: Tensor | None = None
    fed: Tensor | None = None
    for n in range(len(frames)):
        last, following = max(n - 1, 0), min(n + 1, len(frames) - 1)
        x = torch.cat([frames[last], frames[n], frames[following]], 1)
        x = F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], 1, 2))
        x = F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], 2, 1))
        h = res(torch.cat([x, torch.zeros_like(x) if fed is None else fed], 1), "encoder")
        if blended is None:
            blended = h
        else:
            a = F.conv2d(torch.cat([blended, h], 1), w["dtb.conv.weight"], w["dtb.conv.bias"], 1, 2)
            weight = torch.minimum(torch.ones(()), torch.tanh(a).abs() + w["dtb.beta"])
            blended = weight * h + (1 - weight) * blended
        z = res(blended, "decoder")
        y = F.relu(F.conv_transpose2d(z, w["deconv.weight"], w["deconv.bias"], 2, 1))
        out.append(F.conv2d(y, w["output.weight"], w["output.bias"], 1, 1))
        fed = F.relu(F.conv2d(z, w["feedback.weight"], w["feedback.bias"], 1, 1))
    return out


def test_strcnn_dtb_agrees_with_a_second_implementation() -> None:
    network = scramble(Strcnn())
    frames = list(torch.rand(5, 1, 3, 24, 20, generator=torch.Generator().manual_seed(3)))
    expected = reference_strcnn_dtb(dict(network.state_dict()), frames)
    state: State | None = None
    for n in range(5):
        window = torch.cat([frames[max(n - 1, 0)], frames[n], frames[min(n + 1, 4)]], 1)
        with torch.no_grad():
            out, state = network.step(window, state)
        torch.testing.assert_close(out, expected[n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_state_carried_over_equals_one_unrolled_pass(name: str, config: dict[str, Any]) -> None:
    """k steps with the state handed on, and k steps inside one traced pass, are the same."""
    network = scramble(build_network(name, config))
    window = network.spec.window
    clip = torch.rand(1, 5 + window - 1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    windows = [clip[:, t : t + window].flatten(1, 2) for t in range(5)]

    class Unrolled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Tensor) -> Tensor:
            state: State | None = None
            out = []
            for x in inputs:
                y, state = self.network.step(x, state)
                out.append(y)
            return torch.stack(out)

    with torch.no_grad():
        whole = Unrolled()(*windows)
        state: State | None = None
        for t, x in enumerate(windows):
            kept = None if state is None else tuple(s.clone() for s in state)
            y, state = network.step(x, kept)
            torch.testing.assert_close(y, whole[t], atol=1e-6, rtol=1e-6)
        if network.spec.is_recurrent:  # and the state matters
            fresh, _ = network.step(windows[-1], None)
            assert not torch.allclose(fresh, whole[-1], atol=1e-6)


@pytest.mark.parametrize("name", ["strcnn_dtb", "strcnn_dtb_lite"])
def test_gradients_reach_everything_beta_included(name: str) -> None:
    network = scramble(build_network(name)).train()
    state: State | None = None
    loss = torch.zeros(())
    for t in range(3):
        x = torch.rand(1, 9, 32, 32, generator=torch.Generator().manual_seed(t))
        out, state = network.step(x, state)
        loss = loss + out.square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    for key, p in network.named_parameters():
        assert p.grad is not None, key
        assert float(p.grad.abs().sum()) > 0, key
    assert float(network.dtb.beta.grad.abs()) > 0


def support(network: Any, state: State | None, size: int) -> tuple[int, int]:
    """How far above and below an output pixel the input reaches, over all alignments."""
    spec = network.spec
    up = down = 0
    middle = size // 2 // spec.multiple_of * spec.multiple_of
    for offset in range(spec.multiple_of):
        x = torch.rand(1, 3 * spec.window, size, size, requires_grad=True)
        out, _ = network.step(x, state)
        y = middle + offset
        out[0, :, y, y].sum().backward()
        assert x.grad is not None
        rows = (x.grad.abs().sum(dim=(0, 1, 3)) > 0).nonzero()
        up = max(up, y - int(rows.min()))
        down = max(down, int(rows.max()) - y)
    return up, down


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("cnn", {}, 128),
        ("strcnn", {}, 128),
        ("strcnn_dtb", {}, 128),
        ("strcnn_dtb_lite", SMALL_LITE, 384),
        ("strcnn_dtb_lite", {**SMALL_LITE, "encoder_blocks": (2, 1, 2)}, 512),
    ],
)
def test_receptive_field_is_what_is_stated(name: str, config: dict[str, Any], size: int) -> None:
    """No input pixel beyond the stated distance matters, and the statement is tight."""
    network = build_network(name, config)
    with torch.no_grad():  # averaging kernels: no ReLU blocks, nothing cancels, tanh not saturated
        for module in reversed(list(network.modules())):
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.fill_(1.0 / (module.weight[0].numel()))
                assert module.bias is not None
                module.bias.fill_(0.01)
            elif isinstance(module, DynamicTemporalBlending):
                module.conv.weight.mul_(0.1)
            elif isinstance(module, ResBlock):
                module.conv2.weight.mul_(0.1)
    _, state = network.step(torch.rand(1, 3 * network.spec.window, size, size), None)
    state = tuple(s.detach() for s in state) or None
    up, down = support(network, state, size)
    stated = network.spec.receptive_field
    assert max(up, down) <= stated
    assert max(up, down) > stated - network.spec.multiple_of


def test_blend_is_equation_2_and_3() -> None:
    blend = scramble(DynamicTemporalBlending(4))
    with torch.no_grad():
        blend.beta.fill_(0.25)
    h, past = torch.rand(1, 4, 7, 9), torch.rand(1, 4, 7, 9)
    conv = blend.conv
    a = F.conv2d(torch.cat([past, h], 1), conv.weight, conv.bias, padding=2)
    w = torch.clamp(torch.abs(torch.tanh(a)) + 0.25, max=1.0)
    torch.testing.assert_close(blend(h, past), w * h + (1 - w) * past)


@pytest.mark.parametrize("beta", [-3.0, 0.0, 1.0, 7.0])
def test_blend_never_extrapolates(beta: float) -> None:
    blend = DynamicTemporalBlending(4, beta)
    h, past = torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8)
    out = blend(h, past)
    assert bool((out >= torch.minimum(h, past) - 1e-6).all())
    assert bool((out <= torch.maximum(h, past) + 1e-6).all())
    blend.project_()
    assert 0.0 <= float(blend.beta.detach()) <= 1.0


def test_light_network_starts_as_the_identity() -> None:
    network = StrcnnDtbLite()
    x = torch.rand(1, 9, 32, 32)
    out, _ = network.step(x, None)
    torch.testing.assert_close(out, x[:, 3:6])


def test_last_addition_is_exact_in_bf16() -> None:
    """A bfloat16 network whose correction is zero gives its input back to the last float32 bit."""
    network = StrcnnDtbLite(StrcnnDtbLiteConfig(**SMALL_LITE)).to(torch.bfloat16)
    x = torch.rand(1, 9, 32, 32)
    out, _ = network.step(x, None)
    assert torch.equal(out, x[:, 3:6])


def test_state_of_the_light_network_is_bounded_over_hundreds_of_frames() -> None:
    network = scramble(build_network("strcnn_dtb_lite", SMALL_LITE))
    state: State | None = None
    sizes = []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(400):
            x = torch.rand(1, 9, 16, 16, generator=generator)
            out, state = network.step(x, state)
            sizes.append(max(float(s.abs().max()) for s in state))
            assert bool(torch.isfinite(out).all())
    assert max(sizes[200:]) <= 2 * max(sizes[:50])


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_checkpoint_round_trip(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    network = scramble(build_network(name, config))
    path = tmp_path / "weights.safetensors"
    save_network(network, path)
    assert list(tmp_path.iterdir()) == [path]
    state = load_file(str(path))
    assert detect(shapes_of(state)).name == name
    metadata = {"residual": "true"} if config.get("residual") else {}
    again = from_state(state, metadata)
    assert again.config == network.config
    x = torch.rand(1, 3 * again.spec.window, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.step(x, None)[0], network.step(x, None)[0])


def test_checkpoint_of_no_network_is_refused() -> None:
    with pytest.raises(UnknownCheckpointError):
        from_state({"a.weight": torch.zeros(1)})


def test_no_two_networks_claim_a_checkpoint() -> None:
    for name in ENTRIES:
        shapes = shapes_of(build_network(name).state_dict())
        assert [e.name for e in ENTRIES.values() if e.detect(shapes)] == [name]


def test_cheaper_networks_are_cheaper() -> None:
    costs = [
        build_network(n).spec.flops_per_pixel for n in ("strcnn_dtb_lite", "strcnn", "strcnn_dtb")
    ]
    assert all(a < b for a, b in pairwise(costs))
