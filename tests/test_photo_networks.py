"""The photo networks against second implementations, written from the papers by other means."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from tests.small import scramble
from vs_deblur.tiling import round_up
from vs_deblur.weights import read_tensors
from vs_deblur_models.dmphn import Decoder, Dmphn, DmphnConfig, Encoder
from vs_deblur_models.mscnn import Mscnn, MscnnConfig, MscnnDiscriminator, reduced
from vs_deblur_models.registry import build_network, detect, from_state, save_network, shapes_of
from vs_deblur_models.spec import PhotoNetwork
from vs_deblur_models.srn import ConvLstm, Srn, SrnConfig, doubled, halved

Weights = dict[str, Tensor]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("mscnn", {"blocks": 2, "channels": 8}),
    ("mscnn", {"scales": 2, "blocks": 1, "channels": 4, "pyramid": "average"}),
    ("srn", {}),
    ("srn", {"colour": True, "lstm": False}),
    ("srn", {"colour": True, "lstm": True}),
    ("dmphn", {"levels": 2}),
    ("dmphn", {"levels": 3}),
    ("dmphn", {"levels": 4}),
    ("dmphn", {"levels": 3, "stacks": 2}),
    ("dmphn", {"levels": 3, "stacks": 4}),
    (
        "photo_lite",
        {"channels": (4, 6, 8), "encoder_blocks": (1, 2, 1), "decoder_blocks": (2, 1)},
    ),
]
IDS = [f"{n}-{'-'.join(map(str, c.values()))}" for n, c in VARIANTS]


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def picture(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


def close(a: Tensor, b: Tensor) -> None:
    """To 1e-5 of the largest value (random weights give values beyond 0..1)."""
    assert a.shape == b.shape
    scale = max(1.0, float(b.abs().max()))
    assert float((a - b).abs().max()) <= 1e-5 * scale


# --------------------------------------------------------------------------------- counts


def test_parameter_counts_are_the_papers() -> None:
    with torch.device("meta"):
        assert parameters(Mscnn()) == 11_721_321
        assert parameters(MscnnDiscriminator()) == 10_725_216
        assert parameters(Srn()) == 8_056_609
        assert parameters(Srn(SrnConfig(colour=True, lstm=False))) == 6_881_251
        assert parameters(Encoder()) == 868_288
        assert parameters(Decoder()) == 939_843
        for levels, stacks in ((2, 1), (3, 1), (4, 1), (3, 2), (3, 3), (3, 4)):
            expected = stacks * levels * (868_288 + 939_843)
            assert parameters(Dmphn(DmphnConfig(levels, stacks))) == expected
        assert parameters(Dmphn()) == 7_232_524
        coarse, fine = Mscnn().networks[-1], Mscnn().networks[0]
        assert (parameters(coarse), parameters(fine)) == (3_903_299, 3_908_099)


def test_the_work_is_the_papers() -> None:
    """Multiply-adds of a 1280x720 picture, in 10^9."""
    with torch.device("meta"):
        networks: dict[float, Any] = {
            4724: Mscnn(),
            1174: Srn(SrnConfig(colour=True, lstm=False)),
            916: Dmphn(),
        }
        for work, network in networks.items():
            assert network.spec.flops_per_pixel * 1280 * 720 / 2e9 == pytest.approx(work, abs=0.5)


# --------------------------------------------------------------------------------- MSCNN


def _residual5(w: Weights, name: str, x: Tensor) -> Tensor:
    inner = F.relu(F.conv2d(x, w[f"{name}.conv1.weight"], w[f"{name}.conv1.bias"], padding="same"))
    return F.conv2d(inner, w[f"{name}.conv2.weight"], w[f"{name}.conv2.bias"], padding="same") + x


def _mscnn_by_hand(w: Weights, blurred: Tensor, scales: int, blocks: int, average: bool) -> Tensor:
    """Pyramid by SciPy, the convolutions one by one."""
    sizes = [blurred.numpy().astype(np.float64)]
    for _ in range(scales - 1):
        soft = gaussian_filter(sizes[-1], (0, 0, 2 / 3, 2 / 3), mode="reflect", truncate=4.0)
        quarters = [soft[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        sizes.append(sum(quarters) / 4 if average else quarters[0])
    result: Tensor | None = None
    for s in range(scales - 1, -1, -1):
        x = torch.from_numpy(sizes[s].astype(np.float32)) - 0.5
        if result is not None:
            name = f"enlargements.{s}"
            maps = F.conv2d(result, w[f"{name}.weight"], w[f"{name}.bias"], padding=2)
            b, _, h, width = maps.shape
            up = torch.zeros(b, 3, 2 * h, 2 * width)
            for c, i, j in itertools.product(range(3), (0, 1), (0, 1)):
                up[:, c, i::2, j::2] = maps[:, 4 * c + 2 * i + j]
            x = torch.cat([x, up], 1)
        name = f"networks.{s}"
        x = F.conv2d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], padding=2)
        for i in range(1, blocks + 1):
            x = _residual5(w, f"{name}.{i}", x)
        last = blocks + 1
        result = F.conv2d(x, w[f"{name}.{last}.weight"], w[f"{name}.{last}.bias"], padding=2)
    assert result is not None
    return result + 0.5


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(("scales", "height", "width"), [(3, 24, 36), (3, 4, 4), (2, 6, 10)])
def test_mscnn_is_what_the_paper_says(average: bool, scales: int, height: int, width: int) -> None:
    config = MscnnConfig(scales, 3, 8, "average" if average else "subsample")
    network = scramble(Mscnn(config))
    x = picture(height, width, batch=2)
    with torch.no_grad():
        expected = _mscnn_by_hand(network.state_dict(), x, scales, 3, average)
        close(network(x), expected)
        sizes = [tuple(out.shape[-2:]) for out in network.scales(x)]
    assert sizes == [(height >> s, width >> s) for s in range(scales)]


def test_the_pyramid_keeps_flat_pictures_flat() -> None:
    for pyramid in ("subsample", "average"):
        out = reduced(torch.full((1, 3, 2, 6), 0.3), pyramid)
        assert torch.allclose(out, torch.full((1, 3, 1, 3), 0.3))


def test_the_discriminator_gives_one_value_for_a_patch() -> None:
    network = scramble(MscnnDiscriminator())
    x = picture(256, 256)
    with torch.no_grad():
        value = network(x)
        y = x
        for i, stride in enumerate((1, 2, 1, 2, 1, 4, 1, 4, 1)):
            y = F.conv2d(y, network.layers[i].weight, stride=stride, padding=2)
            y = torch.where(y > 0, y, 0.2 * y)
        y = torch.einsum("bchw,ochw->bo", y, network.layers[9].weight)
        y = torch.where(y > 0, y, 0.2 * y)
        expected = 1 / (1 + torch.exp(-y @ network.output.weight[:, :, 0, 0].T))
    assert value.shape == (1, 1, 1, 1)
    close(value.reshape(1, 1), expected)


# --------------------------------------------------------------------------------- SRN


def _tensorflow_resize(x: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    """Bilinear with align_corners=False and no half-pixel centres, value by value."""
    _, _, h, w = x.shape
    out = np.empty((*x.shape[:2], height, width))
    for i, j in itertools.product(range(height), range(width)):
        y, z = i * h / height, j * w / width
        top, left = math.floor(y), math.floor(z)
        bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
        a, b = y - top, z - left
        out[..., i, j] = (1 - a) * ((1 - b) * x[..., top, left] + b * x[..., top, right]) + a * (
            (1 - b) * x[..., bottom, left] + b * x[..., bottom, right]
        )
    return out


@pytest.mark.parametrize("size", [(8, 12), (4, 4)])
def test_sizes_change_as_in_tensorflow_1(size: tuple[int, int]) -> None:
    x = picture(*size)
    for out, scale in ((halved(x), 0.5), (halved(x, 2), 0.25), (doubled(x), 2.0)):
        expected = _tensorflow_resize(x.numpy(), round(size[0] * scale), round(size[1] * scale))
        close(out, torch.from_numpy(expected.astype(np.float32)))


def _same(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """TensorFlow's SAME: as much zero padding as needed, the odd row at the end."""
    pads: list[int] = []
    for n in (x.shape[3], x.shape[2]):
        total = max((math.ceil(n / stride) - 1) * stride + weight.shape[-1] - n, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, bias, stride)


def _transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 4x4 convolution with stride 2 the other way round: every input pixel adds its kernel."""
    batch, _, h, w = x.shape
    out = torch.zeros(batch, weight.shape[1], 2 * h + 2, 2 * w + 2)
    for i, j in itertools.product(range(h), range(w)):
        out[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += torch.einsum(
            "bc,cokl->bokl", x[:, :, i, j], weight
        )
    return out[:, :, 1:-1, 1:-1] + bias.view(1, -1, 1, 1)


def _lstm(w: Weights, x: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    gates = _same(torch.cat([x, h], 1), w["lstm.conv.weight"], w["lstm.conv.bias"])
    n = x.shape[1]
    i, j, f, o = (gates[:, k * n : (k + 1) * n] for k in range(4))
    c = c / (1 + torch.exp(-f - 1)) + torch.tanh(j) / (1 + torch.exp(-i))
    return c, torch.tanh(c) / (1 + torch.exp(-o))


def _srn_planes(w: Weights, planes: Tensor, lstm: bool) -> list[Tensor]:
    """All sizes for (B, planes, H, W)."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return _same(x, w[f"{name}.weight"], w[f"{name}.bias"], stride)

    def three(name: str, x: Tensor) -> Tensor:
        for i in range(3):
            x = _residual5(w, f"{name}.{i}", x)
        return x

    def resize(x: Tensor, height: int, width: int) -> Tensor:
        return torch.from_numpy(_tensorflow_resize(x.numpy(), height, width).astype(np.float32))

    _, _, height, width = planes.shape
    prediction = planes
    found: list[Tensor] = []
    c = h = torch.zeros(planes.shape[0], 128, height // 4, width // 4)
    for s in (4, 2, 1):
        hi, wi = height // s, width // s
        x = torch.cat([resize(planes, hi, wi), resize(prediction, hi, wi)], 1)
        c, h = (resize(t, hi // 4, wi // 4) for t in (c, h))
        e1 = three("blocks1", F.relu(conv("encoder1", x)))
        e2 = three("blocks2", F.relu(conv("encoder2.conv", e1, 2)))
        e3 = three("blocks3", F.relu(conv("encoder3.conv", e2, 2)))
        if lstm:
            c, h = _lstm(w, e3, c, h)
            e3 = h
        d3 = three("unblocks3", e3)
        d2 = F.relu(_transposed(d3, w["decoder2.weight"], w["decoder2.bias"])) + e2
        d1 = F.relu(_transposed(three("unblocks2", d2), w["decoder1.weight"], w["decoder1.bias"]))
        prediction = conv("output", three("unblocks1", d1 + e1))
        found.insert(0, prediction)
    return found


@pytest.mark.parametrize(("colour", "lstm"), [(False, True), (True, False), (True, True)])
def test_srn_is_what_the_paper_says(colour: bool, lstm: bool) -> None:
    network = scramble(Srn(SrnConfig(colour, lstm)))
    x = picture(32, 16, batch=2)
    with torch.no_grad():
        sizes = network.scales(x)
        if colour:
            expected = _srn_planes(network.state_dict(), x, lstm)
        else:
            planes = [_srn_planes(network.state_dict(), x[:, k : k + 1], lstm) for k in range(3)]
            expected = [torch.cat([p[s] for p in planes], 1) for s in range(3)]
        assert torch.equal(network(x), sizes[0])
    for out, wanted in zip(sizes, expected, strict=True):
        close(out, wanted)


def test_no_gradient_flows_from_a_size_to_the_one_before() -> None:
    network = scramble(Srn(SrnConfig(colour=True, lstm=False)))
    sizes = network.scales(picture(16, 16))
    for finer, coarser in ((0, 1), (0, 2), (1, 2)):
        (grad,) = torch.autograd.grad(
            sizes[finer].sum(), sizes[coarser], retain_graph=True, allow_unused=True
        )
        assert grad is None


def test_the_lstm_forgets_little_at_first() -> None:
    cell = ConvLstm(2)
    with torch.no_grad():
        for p in cell.parameters():
            p.zero_()
        memory = torch.ones(1, 2, 3, 3)
        c, h = cell(torch.zeros(1, 2, 3, 3), (memory, torch.zeros(1, 2, 3, 3)))
    kept = 1 / (1 + math.exp(-1))
    assert torch.allclose(c, torch.full_like(c, kept))
    assert torch.allclose(h, torch.full_like(h, math.tanh(kept) / 2))


# --------------------------------------------------------------------------------- DMPHN


def _run(w: Weights, name: str, x: Tensor, kinds: str) -> Tensor:
    """Convolutions (c), strided ones (s), transposed ones (t), residual blocks (r), in order."""
    for i, kind in enumerate(kinds):
        key = f"{name}.{i}"
        if kind == "r":
            inner = F.conv2d(x, w[f"{key}.conv1.weight"], w[f"{key}.conv1.bias"], padding=1)
            x = x + F.conv2d(
                inner.clamp(min=0), w[f"{key}.conv2.weight"], w[f"{key}.conv2.bias"], padding=1
            )
        elif kind == "t":
            x = _transposed(x, w[f"{key}.weight"], w[f"{key}.bias"])
        else:
            stride = 2 if kind == "s" else 1
            x = F.conv2d(x, w[f"{key}.weight"], w[f"{key}.bias"], stride, padding=1)
    return x


def _encode(w: Weights, s: int, level: int, x: Tensor) -> Tensor:
    return _run(w, f"stacks.{s}.encoders.{level - 1}", x, "crrsrrsrr")


def _decode(w: Weights, s: int, level: int, x: Tensor) -> Tensor:
    return _run(w, f"stacks.{s}.decoders.{level - 1}", x, "rrtrrtrrc")


def _dmphn_1_2_4_8(w: Weights, blurred: Tensor) -> Tensor:
    """Patch by patch: rows and columns of quarters and halves, named by their place."""
    x = blurred - 0.5
    height, width = x.shape[-2:]
    q, h, v = height // 4, height // 2, width // 2
    eight = {
        (r, c): x[:, :, r * q : (r + 1) * q, c * v : (c + 1) * v] for r in range(4) for c in (0, 1)
    }
    f4 = {place: _encode(w, 0, 4, p) for place, p in eight.items()}
    f4m = {(r, c): torch.cat([f4[2 * r, c], f4[2 * r + 1, c]], 2) for r in (0, 1) for c in (0, 1)}
    r4 = {place: _decode(w, 0, 4, f) for place, f in f4m.items()}
    four = {
        (r, c): x[:, :, r * h : (r + 1) * h, c * v : (c + 1) * v] for r in (0, 1) for c in (0, 1)
    }
    f3 = {place: _encode(w, 0, 3, four[place] + r4[place]) + f4m[place] for place in four}
    f3m = [torch.cat([f3[r, 0], f3[r, 1]], 3) for r in (0, 1)]
    r3 = [_decode(w, 0, 3, f) for f in f3m]
    two = [x[:, :, :h], x[:, :, h:]]
    f2 = torch.cat([_encode(w, 0, 2, two[i] + r3[i]) + f3m[i] for i in (0, 1)], 2)
    r2 = _decode(w, 0, 2, f2)
    return _decode(w, 0, 1, _encode(w, 0, 1, x + r2) + f2) + 0.5


def _dmphn_stack(w: Weights, blurred: Tensor, stacks: int) -> Tensor:
    """DMPHN-1-2-4 one after the other, each with the features of the one before (SDNet)."""
    x = blurred - 0.5
    h, v = x.shape[2] // 2, x.shape[3] // 2
    before: dict[str, Tensor] = {}
    first: Tensor | None = None
    for s in range(stacks):
        now: dict[str, Tensor] = {}
        for row, band in (("top", x[:, :, :h]), ("bottom", x[:, :, h:])):
            left, right = (_encode(w, s, 3, band[..., c]) for c in (slice(0, v), slice(v, None)))
            now[f"3{row}"] = torch.cat([left, right], 3) + before.get(f"3{row}", torch.tensor(0.0))
            correction = _decode(w, s, 3, now[f"3{row}"])
            now[f"2{row}"] = _encode(w, s, 2, band + correction) + now[f"3{row}"]
            now[f"2{row}"] = now[f"2{row}"] + before.get(f"2{row}", torch.tensor(0.0))
        f2 = torch.cat([now["2top"], now["2bottom"]], 2)
        r2 = _decode(w, s, 2, f2) + (0.0 if first is None else first)
        now["1"] = _encode(w, s, 1, x + r2) + f2 + before.get("1", torch.tensor(0.0))
        x = _decode(w, s, 1, now["1"])
        first = x if first is None else first
        before = now
    return x + 0.5


def test_dmphn_1_2_4_8_is_what_the_paper_says() -> None:
    network = scramble(Dmphn())
    x = picture(32, 24, batch=2)
    with torch.no_grad():
        close(network(x), _dmphn_1_2_4_8(network.state_dict(), x))


@pytest.mark.parametrize("stacks", [1, 2, 3, 4])
def test_stacks_are_what_the_authors_code_does(stacks: int) -> None:
    network = scramble(Dmphn(DmphnConfig(3, stacks)))
    x = picture(16, 24)
    with torch.no_grad():
        close(network(x), _dmphn_stack(network.state_dict(), x, stacks))


def test_dmphn_1_2_is_what_the_paper_says() -> None:
    network = scramble(Dmphn(DmphnConfig(2)))
    w, x = network.state_dict(), picture(16, 12)
    with torch.no_grad():
        centred = x - 0.5
        f2 = torch.cat(
            [_encode(w, 0, 2, half) for half in (centred[:, :, :8], centred[:, :, 8:])], 2
        )
        f1 = _encode(w, 0, 1, centred + _decode(w, 0, 2, f2)) + f2
        close(network(x), _decode(w, 0, 1, f1) + 0.5)


# --------------------------------------------------------------------------------- contract


@pytest.mark.parametrize(("name", "config"), VARIANTS, ids=IDS)
def test_checkpoints_are_recognised_and_keep_everything(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    network = scramble(build_network(name, config))
    save_network(network, tmp_path / "x.safetensors")
    state, metadata = read_tensors(tmp_path / "x.safetensors")
    assert detect(shapes_of(state)).name == name
    again = from_state(state, metadata)
    assert again.config == network.config
    spec = again.spec
    x = picture(spec.multiple_of, spec.width_multiple_of or spec.multiple_of)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    assert isinstance(again, PhotoNetwork)


@pytest.mark.parametrize(("name", "config"), VARIANTS, ids=IDS)
def test_shape_rules_hold(name: str, config: dict[str, Any]) -> None:
    """What the rules allow works; half of the rule does not."""
    network = scramble(build_network(name, config))
    spec = network.spec
    rows, columns = spec.multiple_of, spec.width_multiple_of or spec.multiple_of
    with torch.no_grad():
        for height, width in ((rows, columns), (3 * rows, columns), (rows, 2 * columns)):
            assert network(picture(height, width)).shape == (1, 3, height, width)
        for height, width in ((rows + rows // 2, columns), (rows, columns + columns // 2)):
            try:
                right = network(picture(height, width)).shape == (1, 3, height, width)
            except RuntimeError:
                right = False
            assert not right


@pytest.mark.parametrize("variant", [0, 1, 4, 10], ids=lambda i: IDS[i])
def test_no_pixel_depends_on_one_beyond_the_receptive_field(
    variant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By gradients, in a strip: which columns a column of the result depends on."""
    monkeypatch.setattr(Tensor, "detach", lambda x: x)  # SRN cuts gradients, not values
    name, config = VARIANTS[variant]
    network = build_network(name, config).double()
    if name == "photo_lite":  # equal channels would be nothing to its normalisation
        scramble(network)
    else:
        with torch.no_grad():
            for p in network.parameters():  # every convolution a mean: nothing cancels or overflows
                p.fill_(1.0 / p[0].numel() if p.ndim == 4 else 0.0)
    spec = network.spec
    width = round_up(2 * spec.receptive_field, spec.multiple_of) + 2 * spec.multiple_of
    middle = width // 2 // spec.multiple_of * spec.multiple_of
    x = torch.ones(1, 3, spec.multiple_of, width, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(network(x)[..., middle].sum(), x)
    columns = torch.nonzero(grad.abs().amax(dim=(0, 1, 2))).flatten()
    reach = max(middle - int(columns.min()), int(columns.max()) - middle)
    assert 0.9 * spec.receptive_field - 2 * spec.multiple_of <= reach <= spec.receptive_field
