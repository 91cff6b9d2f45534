"""``vs-deblur models convert``: foreign layouts built from random weights, and hostile files."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from skimage.transform import pyramid_gaussian
from torch import Tensor, nn
from torch.nn import functional as F

from tests.hostile import PROTOCOLS, Eval, Hostile, save_hostile
from tests.invoke import Result, invoke
from tests.small import scramble
from vs_deblur import foreign, weights
from vs_deblur.cli import models
from vs_deblur.convert import srn_state
from vs_deblur.errors import WeightsError
from vs_deblur.weights import load, read_tensors, sha256_of
from vs_deblur_models.dmphn import Dmphn, DmphnConfig
from vs_deblur_models.mscnn import Mscnn, MscnnConfig
from vs_deblur_models.registry import build_network, save_network, write_network
from vs_deblur_models.srn import Srn, SrnConfig
from vs_deblur_models.strcnn import Strcnn, StrcnnConfig

SMALL = MscnnConfig(scales=2, blocks=1, channels=4)


def picture(height: int = 16, width: int = 8) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))


def small_mscnn() -> Any:
    return scramble(Mscnn(SMALL), seed=5)


def convert(source: Path, output: Path, *options: object) -> Result:
    return invoke(models.command, "convert", source, "-o", output, *options)


def converted(source: Path, output: Path, *options: object) -> Any:
    """The network that a checkpoint becomes; the command must say what it is in one line."""
    result = convert(source, output, *options)
    assert result.code == 0, result.error
    assert len(result.out.splitlines()) == 1
    assert f"--model {output}" in result.out
    assert sorted(p.name for p in output.parent.iterdir() if ".part" in p.name) == []
    return load(str(output)).network


def refusal(source: Path, *options: object, code: int = 5) -> str:
    """The one line that refuses a checkpoint; nothing is left behind."""
    folder = source.parent / "refused"
    folder.mkdir(exist_ok=True)
    result = convert(source, folder / "out.safetensors", *options)
    assert result.code == code, (result.out, result.error)
    assert result.out == ""
    assert list(folder.iterdir()) == []
    text = str(result.error)
    assert "\n" not in text
    assert len(text) < 1000
    assert all(c.isprintable() for c in text)
    return text


def same(a: Any, b: Any, x: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(a(x), b(x))


def save_legacy(state: object, path: Path) -> None:
    """As PyTorch before 1.6."""
    torch.save(state, path, _use_new_zipfile_serialization=False, pickle_protocol=2)


# ------------------------------------------------------------------------------------------ DMPHN


class Part(nn.Module):
    """An encoder or decoder with the authors' names: blocks are Sequentials, the sum is outside."""

    def __init__(self, layers: dict[int, nn.Module]) -> None:
        super().__init__()
        for number, layer in layers.items():
            self.add_module(f"layer{number}", layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x) + x if isinstance(layer, nn.Sequential) else layer(x)
        return x


def part(kind: str) -> Part:
    def conv(a: int, b: int, stride: int = 1) -> nn.Module:
        return nn.Conv2d(a, b, 3, stride, padding=1)

    def block(c: int) -> nn.Module:
        return nn.Sequential(conv(c, c), nn.ReLU(), conv(c, c))

    def larger(a: int, b: int) -> nn.Module:
        return nn.ConvTranspose2d(a, b, 4, 2, padding=1)

    down = {1: conv(3, 32), 5: conv(32, 64, 2), 9: conv(64, 128, 2)}
    down |= {2: block(32), 3: block(32), 6: block(64), 7: block(64), 10: block(128), 11: block(128)}
    up = {16: larger(128, 64), 20: larger(64, 32), 24: conv(32, 3)}
    up |= {13: block(128), 14: block(128), 17: block(64), 18: block(64), 21: block(32)}
    up |= {22: block(32)}
    return Part(dict(sorted((down if kind == "encoder" else up).items())))


def publish(folder: Path, levels: int, stacks: int = 0, *, prefix: str = "") -> Any:
    """Write a folder of DMPHN, or SDNet if there are stacks, from random weights of the authors'
    parts; gives the network made of them."""
    folder.mkdir(parents=True)
    network = Dmphn(DmphnConfig(levels, max(stacks, 1)))
    for stack in network.stacks:
        stack.encoders = nn.ModuleList(part("encoder") for _ in range(levels))
        stack.decoders = nn.ModuleList(part("decoder") for _ in range(levels))
    scramble(network, seed=levels)
    for s, stack in enumerate(network.stacks):
        for level in range(levels):
            for kind in ("encoder", "decoder"):
                module = getattr(stack, f"{kind}s")[level]
                state = OrderedDict((prefix + k, v) for k, v in module.state_dict().items())
                of_stack = f"s{s + 1}_" if stacks else ""
                save_legacy(state, folder / f"{kind}_{of_stack}lv{level + 1}.pkl")
    return network


def test_the_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented command says what the documentation says that it says."""
    text = (Path(__file__).parent.parent / "docs" / "converting.md").read_text(encoding="utf-8")
    found = re.search(r"^\$ vs-deblur models (convert .*)\n(.*)$", text, re.MULTILINE)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    publish(tmp_path / "DMPHN_1_2_4_8", 4)
    result = invoke(models.command, *found[1].split())
    assert (result.code, result.out) == (0, found[2] + "\n")


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_dmphn_folders_give_the_same_pictures(tmp_path: Path, levels: int) -> None:
    original = publish(tmp_path / "checkpoints", levels)
    ours = converted(tmp_path / "checkpoints", tmp_path / "x.safetensors", "--network", "dmphn")
    assert ours.config == DmphnConfig(levels)
    same(ours, original, picture(32, 16))


def test_sdnet_folders_give_the_same_pictures(tmp_path: Path) -> None:
    original = publish(tmp_path / "SDNet2", 3, 2, prefix="module.")
    result = convert(tmp_path / "SDNet2", tmp_path / "x.safetensors")
    assert "2 of 2 stacks, as the folder's name says" in result.out
    ours = load(str(tmp_path / "x.safetensors")).network
    assert ours.config == DmphnConfig(3, 2)
    same(ours, original, picture())


def test_a_stack_too_many_is_left_out(tmp_path: Path) -> None:
    """As in the published SDNet3, whose code does not read the fourth."""
    original = publish(tmp_path / "SDNet3", 3, 4)
    original.stacks = original.stacks[:3]
    result = convert(tmp_path / "SDNet3", tmp_path / "named.safetensors")
    assert "3 of 4 stacks, as the folder's name says" in result.out
    named = load(str(tmp_path / "named.safetensors")).network
    same(named, original, picture())
    (tmp_path / "SDNet3").rename(tmp_path / "mine")
    result = convert(tmp_path / "mine", tmp_path / "all.safetensors")
    assert "all 4 stacks of the folder" in result.out
    assert load(str(tmp_path / "all.safetensors")).network.config.stacks == 4
    asked = converted(tmp_path / "mine", tmp_path / "three.safetensors", "--stacks", 3)
    same(asked, original, picture())
    text = refusal(tmp_path / "mine", "--stacks", 5)
    assert "missing: encoder_s5_lv1.pkl" in text
    assert " more (" in text
    assert text.count(".pkl") == 5


@pytest.fixture(scope="module")
def dmphn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DMPHN-1-2; tests change copies."""
    folder = tmp_path_factory.mktemp("dmphn") / "DMPHN_1_2"
    publish(folder, 2)
    return folder


@pytest.fixture
def folder(dmphn_folder: Path, tmp_path: Path) -> Path:
    """A folder of links to it, which can be replaced one by one."""
    (tmp_path / "folder").mkdir()
    for path in dmphn_folder.iterdir():
        (tmp_path / "folder" / path.name).symlink_to(path)
    return tmp_path / "folder"


def edit(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    path.unlink()
    save_legacy(state, path)


def test_files_of_a_graphics_card_are_read_without_one(folder: Path, tmp_path: Path) -> None:
    expected = converted(folder, tmp_path / "cpu.safetensors")
    for path in folder.iterdir():
        data = path.read_bytes()
        moved = data.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
        moved = moved.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
        assert moved.count(b"cuda") == 2
        path.unlink()
        path.write_bytes(moved)
    same(converted(folder, tmp_path / "cuda.safetensors"), expected, picture())


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_missing_levels_are_named(folder: Path, kind: str) -> None:
    (folder / f"{kind}_lv1.pkl").unlink()
    assert f"missing: {kind}_lv1.pkl (" in refusal(folder)


def test_a_gap_in_the_levels_is_named(folder: Path) -> None:
    (folder / "encoder_lv2.pkl").rename(folder / "encoder_lv4.pkl")
    assert "missing: encoder_lv2.pkl, encoder_lv3.pkl, decoder_lv3.pkl" in refusal(folder)


def test_too_many_levels(folder: Path) -> None:
    for level in range(3, 6):
        (folder / f"encoder_lv{level}.pkl").symlink_to(folder / "encoder_lv1.pkl")
    assert "levels must be 2, 3 or 4, got 5" in refusal(folder)


def test_files_of_stacks_and_of_none_are_not_mixed(folder: Path) -> None:
    (folder / "encoder_s1_lv1.pkl").symlink_to(folder / "encoder_lv1.pkl")
    assert "mixed" in refusal(folder)


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no checkpoint is in this folder" in refusal(tmp_path / "empty")


def test_one_part_alone(folder: Path) -> None:
    for name in ("encoder_lv1.pkl", "decoder_lv1.pkl"):
        assert "give the folder" in refusal(folder / name)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s.pop("layer7.2.bias"), "missing: encoder_lv2.pkl: layer7.2.bias"),
        (lambda s: s.update(more=torch.ones(1)), "left over: encoder_lv2.pkl: more"),
        (
            lambda s: s.update({"layer5.weight": torch.ones(64, 32, 5, 5)}),
            "encoder_lv2.pkl: layer5.weight is (64, 32, 5, 5), not (64, 32, 3, 3)",
        ),
        (
            lambda s: s["layer5.weight"].view(-1)[7].fill_(float("nan")),
            "tensor layer5.weight has values that are NaN or infinite",
        ),
        (lambda s: s.update({"layer5.bias": torch.ones(64, dtype=torch.int32)}), "floating-point"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    folder: Path, change: Callable[[dict[str, Tensor]], None], what: str
) -> None:
    edit(folder / "encoder_lv2.pkl", change)
    text = refusal(folder)
    assert what in text
    assert str(folder) in text


# ------------------------------------------------------------------------------------------ MSCNN


class PortBody(nn.Module):
    """One size of the authors' PyTorch port."""

    def __init__(self, inputs: int, blocks: int, channels: int) -> None:
        super().__init__()

        def conv(a: int, b: int) -> nn.Module:
            return nn.Conv2d(a, b, 5, padding=2)

        def block() -> nn.Module:
            holder = nn.Module()
            holder.body = nn.Sequential(
                conv(channels, channels), nn.ReLU(), conv(channels, channels)
            )
            return holder

        inner = (block() for _ in range(blocks))
        self.body = nn.Sequential(conv(inputs, channels), *inner, conv(channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Any] = list(self.body)
        first, *blocks, last = layers
        x = first(x)
        for block in blocks:
            x = x + block.body(x)
        out: Tensor = last(x)
        return out


class Port(nn.Module):
    """The generator, for values 0..255 around 127.5; its pyramid is scikit-image's."""

    def __init__(self, scales: int, blocks: int, channels: int) -> None:
        super().__init__()
        inputs = [6] * (scales - 1) + [3]
        self.body_models = nn.ModuleList(PortBody(n, blocks, channels) for n in inputs)
        self.conv_end_models = nn.ModuleList([nn.Module() for _ in range(scales)])
        for module in list(self.conv_end_models)[1:]:
            module.uppath = nn.Sequential(nn.Conv2d(3, 12, 5, padding=2), nn.PixelShuffle(2))

    def forward(self, picture: Tensor) -> Tensor:
        array = picture[0].permute(1, 2, 0).numpy()
        pyramid: Any = pyramid_gaussian
        sizes = pyramid(array, len(self.body_models) - 1, channel_axis=-1)
        inputs = [torch.from_numpy(a.astype(np.float32)).permute(2, 0, 1)[None] for a in sizes]
        x = inputs[-1] - 127.5
        for s in range(len(self.body_models) - 1, 0, -1):
            coarse = self.body_models[s](x)
            end: Any = self.conv_end_models[s]
            up = end.uppath(coarse)
            x = torch.cat((inputs[s - 1] - 127.5, up), 1)
        out: Tensor = self.body_models[0](x) + 127.5
        return out


@pytest.mark.parametrize(("scales", "blocks", "channels"), [(3, 2, 6), (2, 3, 4)])
def test_the_port_of_mscnn_gives_the_same_pictures(
    tmp_path: Path, scales: int, blocks: int, channels: int
) -> None:
    port = scramble(Port(scales, blocks, channels))
    with torch.no_grad():
        for name, p in port.named_parameters():
            if name.endswith("bias"):
                p.mul_(200)  # of the size that values 0..255 ask for
    torch.save({"G": port.state_dict(), "D": {"junk": torch.ones(2)}}, tmp_path / "model-100.pt")
    ours = converted(tmp_path / "model-100.pt", tmp_path / "x.safetensors")
    assert ours.config == MscnnConfig(scales, blocks, channels, "average")
    x = picture(16, 24)
    with torch.no_grad():
        expected, got = port(255 * x), 255 * ours(x)
        moved = 255 * converted(
            tmp_path / "model-100.pt", tmp_path / "y.safetensors", "--rgb-range", 1
        )(x)
    scale = float(expected.abs().max())
    assert float((got - expected).abs().max()) <= 1e-5 * scale
    assert float((moved - expected).abs().max()) > 1e-2 * scale  # the biases matter


def test_the_published_size_of_mscnn(tmp_path: Path) -> None:
    port = scramble(Port(3, 19, 64))
    save_legacy(OrderedDict(G=port.state_dict()), tmp_path / "model-100.pt")
    result = convert(tmp_path / "model-100.pt", tmp_path / "x.safetensors", "--half")
    assert "mscnn (scales = 3, blocks = 19, channels = 64, pyramid = average)" in result.out
    assert "11,721,321 parameters" in result.out
    assert "biases / 255" in result.out
    state, _ = read_tensors(tmp_path / "x.safetensors")
    assert {v.dtype for v in state.values()} == {torch.float16}
    expected = port.state_dict()["body_models.1.body.7.body.2.weight"]
    assert torch.equal(state["networks.1.7.conv2.weight"], expected.half())


@pytest.mark.parametrize("c", [255.0, 7.5, 0.01])
def test_mscnn_is_positively_homogeneous(c: float) -> None:
    """f(c x; W, c b) = c f(x; W, b) around the middle grey: why biases / 255 is exact."""
    network, scaled = scramble(Mscnn(SMALL)), scramble(Mscnn(SMALL))
    x = picture() - 0.5
    with torch.no_grad():
        for name, p in scaled.named_parameters():
            if name.endswith("bias"):
                p.mul_(c)
        expected = c * (network(x + 0.5) - 0.5)
        got = scaled(c * x + 0.5) - 0.5
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max() + 1)


def test_a_port_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = Port(2, 2, 4).state_dict()
    state["body_models.1.body.2.body.0.weight"] = torch.ones(4, 4, 3, 3)
    del state["conv_end_models.1.uppath.0.bias"]
    torch.save({"G": state}, tmp_path / "x.pt")
    text = refusal(tmp_path / "x.pt")
    assert "missing: conv_end_models.1.uppath.0.bias" in text
    assert "body_models.1.body.2.body.0.weight is (4, 4, 3, 3), not (4, 4, 5, 5)" in text


# -------------------------------------------------------------------------------- our own names

WRAPPED: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "bare": lambda s: s,
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "module twice": lambda s: {f"module.module.{k}": v for k, v in s.items()},
    "model as a prefix": lambda s: {f"model.{k}": v for k, v in s.items()},
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 0.1}},
    "params": lambda s: {"params": {f"module.{k}": v for k, v in s.items()}},
    "the average first": lambda s: {
        "params": {k: 2 * v for k, v in s.items()},
        "params_ema": s,
    },
    "model in net": lambda s: {"net": {"model": OrderedDict(s)}},
    "generator": lambda s: {"generator": s, "discriminator": {"x": torch.ones(1)}},
    "parameters": lambda s: {k: nn.Parameter(v) for k, v in s.items()},
}


@pytest.mark.parametrize("way", WRAPPED)
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_in_their_wrappers(tmp_path: Path, way: str, legacy: bool) -> None:
    original = small_mscnn()
    content = WRAPPED[way](dict(original.state_dict()))
    (save_legacy if legacy else torch.save)(content, tmp_path / "x.pth")
    same(converted(tmp_path / "x.pth", tmp_path / "x.safetensors"), original, picture())


def test_any_network_of_ours(tmp_path: Path) -> None:
    for original in (
        scramble(Strcnn(StrcnnConfig())),
        scramble(Srn(SrnConfig(colour=True, lstm=False))),
    ):
        torch.save(original.state_dict(), tmp_path / "x.pt")
        ours = converted(tmp_path / "x.pt", tmp_path / "x.safetensors", "--overwrite")
        assert ours.config == original.config
        expected = original.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in ours.state_dict().items())


def test_a_checkpoint_of_python_2(tmp_path: Path) -> None:
    """Its strings are bytes."""
    original = small_mscnn()
    with torch.no_grad():
        for p in original.parameters():
            p.fill_(0.01)
    data = saved({"module." + k: v for k, v in original.state_dict().items()}, old=True)
    short = re.sub(rb"X(.)\0\0\0(?=\w)", rb"U\1", data, flags=re.DOTALL)
    assert len(data) - len(short) > 30 * 3
    (tmp_path / "x.pth").write_bytes(short)
    same(converted(tmp_path / "x.pth", tmp_path / "x.safetensors"), original, picture())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) for k, v in small_mscnn().state_dict().items()}
    torch.save(state, tmp_path / "x.pt")
    converted(tmp_path / "x.pt", tmp_path / "x.safetensors")
    written, _ = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(written[k], v.float()) for k, v in state.items())


def test_safetensors_with_our_names_keep_what_shapes_do_not_tell(tmp_path: Path) -> None:
    original = scramble(Mscnn(MscnnConfig(2, 1, 4, "average")))
    save_network(original, tmp_path / "a.safetensors")
    ours = converted(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert ours.config == original.config
    same(ours, original, picture())
    state = {f"module.{k}": v for k, v in original.state_dict().items()}
    save_file(state, tmp_path / "c.safetensors")
    prefixed = converted(tmp_path / "c.safetensors", tmp_path / "d.safetensors")
    assert prefixed.config.pyramid == "subsample"


def test_numbers_too_large_for_16_bits(tmp_path: Path) -> None:
    network = small_mscnn()
    with torch.no_grad():
        network.networks[0][0].bias.fill_(1e5)
    torch.save(network.state_dict(), tmp_path / "x.pt")
    text = refusal(tmp_path / "x.pt", "--half")
    assert "networks.0.0.bias" in text
    assert "leave out --half" in text
    converted(tmp_path / "x.pt", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"a": torch.ones(1)}, "keys: a"),
        ({"epoch": 1, "model": {"lr": 0.1}}, "there is no state dict in it"),
        ([torch.ones(1)], "there is no state dict in it"),
        (torch.ones(3), "there is no state dict in it"),
        (None, "there is no state dict in it"),
        ({3: torch.ones(1)}, "no proper names"),
        ({"a\x1b[2J": torch.ones(1)}, "no proper names"),
        ({"a" * 300: torch.ones(1)}, "no proper names"),
        ({"a": torch.ones(0)}, "tensor a is not of floating-point numbers"),
        ({"a": torch.ones(2).bool()}, "tensor a is not of floating-point numbers"),
    ],
)
def test_what_is_no_state_dict_of_ours(tmp_path: Path, content: object, what: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert what in refusal(tmp_path / "x.pt")


def test_the_network_asked_for(tmp_path: Path) -> None:
    torch.save(small_mscnn().state_dict(), tmp_path / "x.pt")
    text = refusal(tmp_path / "x.pt", "--network", "dmphn")
    assert "these look like weights of mscnn, not of dmphn" in text
    assert "known: cnn, " in refusal(tmp_path / "x.pt", "--network", "gopro", code=2)
    assert "--stacks" in refusal(tmp_path / "x.pt", "--stacks", 2, code=2)
    assert "--rgb-range" in refusal(tmp_path / "x.pt", "--rgb-range", 255, code=2)


# ------------------------------------------------------------------------------------------ SRN


def variables(network: Any, scope: str = "g_net/") -> dict[str, Any]:
    """A network's weights as the authors' graph names and orders them, in order of execution."""
    blocks = {1: network.blocks1, 2: network.blocks2, 3: network.blocks3}
    unblocks = {1: network.unblocks1, 2: network.unblocks2, 3: network.unblocks3}
    single = {
        "enc1_1": network.encoder1,
        "enc2_1": network.encoder2.conv,
        "enc3_1": network.encoder3.conv,
        "dec2_4": network.decoder2,
        "dec1_4": network.decoder1,
        "dec1_0": network.output,
    }
    if network.config.lstm:
        single["convLSTM/LSTM_conv"] = network.lstm.conv
    for level in (1, 2, 3):
        for names, chain in (
            (("enc{}_2", "enc{}_3", "enc{}_4"), blocks[level]),
            (("dec{}_3", "dec{}_2", "dec{}_1"), unblocks[level]),
        ):
            for name, block in zip(names, chain, strict=True):
                single[f"{name.format(level)}/conv1"] = block.conv1
                single[f"{name.format(level)}/conv2"] = block.conv2
    found: dict[str, Any] = {"global_step": np.int64(523000), "beta1_power": np.float32(0.1)}
    for name, module in single.items():
        # (out, in, H, W) to (H, W, in, out); a transposed one's (in, out, H, W) to (H, W, out, in)
        weight = np.moveaxis(module.weight.detach().numpy(), (0, 1), (3, 2))
        for kind, value in (("weights", weight), ("biases", module.bias.detach().numpy())):
            found[f"{scope}{name}/{kind}"] = value
            for slot in ("Adam", "Adam_1"):
                found[f"{scope}{name}/{kind}/{slot}"] = np.zeros_like(value)
    return found


@pytest.fixture
def tensorflow(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for TensorFlow, whose checkpoints hold what is put into this dictionary."""
    held: dict[str, Any] = {}

    def load_checkpoint(prefix: str) -> Any:
        assert Path(prefix + ".index").is_file()
        return SimpleNamespace(
            get_variable_to_shape_map=lambda: {k: list(v.shape) for k, v in held.items()},
            get_tensor=held.__getitem__,
        )

    module = SimpleNamespace(train=SimpleNamespace(load_checkpoint=load_checkpoint))
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    return held


@pytest.fixture
def srn_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints [color]"
    folder.mkdir()
    for ending in ("index", "data-00000-of-00001", "meta"):
        (folder / f"deblur.model-523000.{ending}").write_bytes(ending.encode())
    (folder / "checkpoint").write_text('model_checkpoint_path: "deblur.model-523000"')
    return folder


@pytest.mark.parametrize(
    ("config", "scope"),
    [
        (SrnConfig(), "g_net/"),
        (SrnConfig(colour=True, lstm=False), ""),
        (SrnConfig(colour=True), "a/g_net/"),
    ],
)
def test_srn_gives_the_same_pictures(
    tmp_path: Path, srn_folder: Path, tensorflow: dict[str, Any], config: SrnConfig, scope: str
) -> None:
    original = scramble(Srn(config))
    tensorflow |= variables(original, scope)
    ours = converted(srn_folder, tmp_path / "x.safetensors", "--network", "srn")
    assert ours.config == config
    same(ours, original, picture(16, 16))


@pytest.mark.parametrize("ending", ["", ".index", ".data-00000-of-00001"])
def test_a_tensorflow_checkpoint_by_any_of_its_names(
    tmp_path: Path, srn_folder: Path, tensorflow: dict[str, Any], ending: str
) -> None:
    tensorflow |= variables(scramble(Srn(SrnConfig(True, False))))
    source = srn_folder / f"deblur.model-523000{ending}"
    converted(source, tmp_path / "x.safetensors")
    _, metadata = read_tensors(tmp_path / "x.safetensors")
    sources = json.loads(metadata["provenance"])["sources"]
    names = [f"deblur.model-523000.{e}" for e in ("index", "data-00000-of-00001")]
    assert sources == {n: sha256_of(srn_folder / n) for n in names}


def test_kernels_are_turned_as_tensorflow_defines_them() -> None:
    """A convolution by its definition, and its gradient, which is what ``conv2d_transpose`` is."""
    original = scramble(Srn(SrnConfig(True, False)))
    arrays = variables(original)
    state = srn_state(arrays, Path("x"))

    def strided(x: Tensor, kernel: Tensor, pads: tuple[int, int, int, int]) -> Tensor:
        x, (size, _, _, outputs) = F.pad(x, pads), kernel.shape
        n = (x.shape[-1] - size) // 2 + 1
        out = torch.zeros(1, outputs, n, n)
        for i in range(size):
            for j in range(size):
                patch = x[:, :, i : i + 2 * n - 1 : 2, j : j + 2 * n - 1 : 2]
                out = out + torch.einsum("bchw,co->bohw", patch, kernel[i, j])
        return out

    x = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    kernel = torch.from_numpy(arrays["g_net/enc2_1/weights"].copy())
    expected = strided(x, kernel, (1, 2, 1, 2))
    got = F.conv2d(F.pad(x, (1, 2, 1, 2)), state["encoder2.conv.weight"], stride=2)
    assert torch.allclose(got, expected, atol=1e-5)

    kernel = torch.from_numpy(arrays["g_net/dec1_4/weights"].copy())  # (4, 4, 32, 64)
    y = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(2))
    x.requires_grad_()
    (expected,) = torch.autograd.grad((strided(x, kernel, (1, 1, 1, 1)) * y).sum(), x)
    got = F.conv_transpose2d(y, state["decoder1.weight"], stride=2, padding=1)
    assert torch.allclose(got, expected, atol=1e-5)


def test_without_tensorflow_the_error_says_so(
    srn_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    text = refusal(srn_folder)
    assert "needs TensorFlow" in text
    assert "install" in text


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda h: h.pop("g_net/dec2_2/conv2/biases"), "missing: dec2_2/conv2/biases"),
        (lambda h: h.update({"g_net/enc9_1/weights": np.ones(3)}), "left over: enc9_1/weights"),
        (lambda h: h.update({"x/enc1_1/biases": np.ones(3)}), "two variables enc1_1/biases"),
        (
            lambda h: h.update({"g_net/enc1_1/biases": np.full(32, np.nan)}),
            "tensor enc1_1/biases has values that are NaN",
        ),
        (
            lambda h: h.update({"g_net/dec1_4/weights": np.ones((4, 4, 64, 32))}),
            "dec1_4/weights is (32, 64, 4, 4), not (64, 32, 4, 4)",
        ),
        (lambda h: h.clear(), "not of SRN"),
        (lambda h: h.update({"g_net/enc1_1/weights": None}), "cannot be read"),
    ],
)
def test_a_tensorflow_checkpoint_that_does_not_fit(
    srn_folder: Path,
    tensorflow: dict[str, Any],
    change: Callable[[dict[str, Any]], None],
    what: str,
) -> None:
    tensorflow |= variables(Srn(SrnConfig(True, False)))
    change(tensorflow)
    assert what in refusal(srn_folder)


def test_parts_of_a_tensorflow_checkpoint_are_missing(
    srn_folder: Path, tensorflow: dict[str, Any]
) -> None:
    (srn_folder / "deblur.model-523000.data-00000-of-00001").unlink()
    assert "missing: deblur.model-523000.data-00000-of-00001" in refusal(srn_folder)
    (srn_folder / "deblur.model-9000.index").touch()
    text = refusal(srn_folder)
    assert "several checkpoints" in text
    assert "deblur.model-9000" in text


# ---------------------------------------------------------------------------- hostile and broken


@pytest.mark.parametrize("kind", [Hostile, Eval])
@pytest.mark.parametrize("way", ["zip", "legacy", *PROTOCOLS])
def test_a_pickle_is_never_run(
    tmp_path: Path, kind: type[Hostile], way: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark, path = tmp_path / "mark", tmp_path / "model.pt"
    save_hostile(kind(mark), path, way)
    text = refusal(path)
    assert "nothing in it was run" in text
    named = r"asks for (__builtin__\.|builtins\.|pathlib\.)"
    assert re.search(rf"{named}|can run code, and which cannot be seen beforehand", text)
    assert not mark.exists()


def test_the_hostile_pickle_would_have_worked(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


def test_one_hostile_part_of_a_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "decoder_lv2.pkl").unlink()
    save_legacy({"layer13.0.weight": Hostile(tmp_path / "mark")}, folder / "decoder_lv2.pkl")
    assert "decoder_lv2.pkl" in refusal(folder)
    assert not (tmp_path / "mark").exists()


def legacy(pickled: bytes) -> bytes:
    """A legacy checkpoint around the pickle of its object."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(h, 2) for h in head) + pickled + pickle.dumps([], 2)


def rezipped(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint of our own, its members changed."""
    stream = io.BytesIO()
    torch.save(small_mscnn().state_dict(), stream)
    out = io.BytesIO()
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(out, "w", compression) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    return out.getvalue()


def deep(levels: int) -> bytes:
    """``{"model": {"model": …}}``."""
    return b"\x80\x02" + b"}X\x05\x00\x00\x00model" * levels + b"}" + b"s" * levels + b"."


def laughing(levels: int) -> bytes:
    """A list that holds the list before ten times, and so on: little to hold, much to look at."""
    return b"\x80\x02]" + b"".join(b"q\x01](" + b"h\x01" * 10 + b"e" for _ in range(levels)) + b"."


def saved(content: object, old: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def larger(data: bytes) -> bytes:
    """The checkpoint of one tensor of 33 numbers, declared to have 2^31 - 1."""
    return data.replace(b"K\x21", b"J\xff\xff\xff\x7f")


def larger_zip() -> bytes:
    out = io.BytesIO()
    stream = io.BytesIO(saved({"a": torch.ones(33)}))
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, larger(old.read(member)))
    return out.getvalue()


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deep": (lambda: legacy(deep(20_000)), "no state dict"),
    "itself": (lambda: legacy(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."), "no state dict"),
    "laughs": (lambda: legacy(laughing(200)), "no state dict"),
    "stretched": (
        lambda: saved({"a": torch.ones(1).expand(1 << 40, 8)}),
        "declares more numbers than it holds",
    ),
    "stretched, old": (
        lambda: saved({"a": torch.ones(1).expand(1 << 40, 8)}, old=True),
        "declares more numbers than it holds",
    ),
    "large storage": (larger_zip, "damaged or cut short"),
    "large storage, old": (
        lambda: larger(saved({"a": torch.ones(33)}, old=True)),
        "damaged or cut short",
    ),
    "bytearray": (
        lambda: legacy(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x40\x85R."),
        "asks for builtins.bytearray",
    ),
    "tensor": (
        lambda: legacy(b"\x80\x02ctorch\nFloatTensor\n\x8a\x05\x00\x00\x00\x00\x40\x85R."),
        "asks for torch.FloatTensor",
    ),
    "long text": (lambda: legacy(b"\x80\x02X\xff\xff\xff\xffabc."), "damaged or cut short"),
    "many digits": (lambda: legacy(b"\x80\x02I" + b"9" * 100_000 + b"\n."), "damaged"),
    "packed": (
        lambda: rezipped(
            lambda name, d: b"\0" * 10_000_000 if "/data/" in name else d, zipfile.ZIP_DEFLATED
        ),
        "unpacks to more than its own size",
    ),
    "an attribute in place of a method": (
        lambda: _odd(),
        "these are not weights of a network of ours",
    ),
    "program": (lambda: _torchscript(), "TorchScript"),
}


def _odd() -> bytes:
    """An OrderedDict whose ``items`` and ``get`` are numbers."""
    odd = OrderedDict(a=torch.ones(1))
    odd.__dict__.update(itemz=3, gez=4)
    data = saved({"state_dict": odd}, old=True)
    return data.replace(b"itemz", b"items").replace(b"gez", b"get")


def _torchscript() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x/constants.pkl", b"\x80\x02).")
        archive.writestr("x/data.pkl", b"\x80\x02}.")
    return out.getvalue()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(tmp_path: Path, bomb: str) -> None:
    make, what = BOMBS[bomb]
    (tmp_path / "x.pt").write_bytes(make())
    assert what in refusal(tmp_path / "x.pt")


def shadowed(seen: bytes, hidden: bytes) -> bytes:
    """Two archives in one: Python's zipfile finds the first, PyTorch's own reader the second.

    Python takes the list of members to be right before its end, whatever place the end states, and
    counts all places from there. Both lists are of the same length.
    """

    def parts(data: bytes) -> tuple[bytes, bytearray, bytearray]:
        end = data.rindex(b"PK\x05\x06")
        size, at = struct.unpack_from("<II", data, end + 12)
        return data[:at], bytearray(data[at : at + size]), bytearray(data[end:])

    members, listed, end = parts(seen)
    others, their_list, _ = parts(hidden)
    assert len(listed) == len(their_list)
    # What Python adds to a member's place is off by as much as its list is away from where the
    # end says it is.
    shift = len(others) + len(their_list) - (len(their_list) + len(members))
    at = 0
    while at < len(listed):
        name, extra, comment = struct.unpack_from("<HHH", listed, at + 28)
        (place,) = struct.unpack_from("<I", listed, at + 42)
        struct.pack_into("<I", listed, at + 42, (place + shift) % (1 << 32))
        at += 46 + name + extra + comment
    struct.pack_into("<I", end, 16, len(others))
    return others + bytes(their_list) + members + bytes(listed) + bytes(end)


def test_what_was_looked_at_is_what_is_loaded(tmp_path: Path) -> None:
    def archive(value: float) -> bytes:
        stream, out = io.BytesIO(saved({"a": torch.full((9,), value)})), io.BytesIO()
        with zipfile.ZipFile(stream) as old, zipfile.ZipFile(out, "w") as new:
            for member in old.infolist():
                new.writestr(zipfile.ZipInfo(member.filename), old.read(member))
        return out.getvalue()

    data = shadowed(archive(1.0), archive(2.0))
    theirs = torch.load(io.BytesIO(data), weights_only=True)
    assert theirs["a"][0] == 2, "PyTorch reads archives otherwise now: this test shows nothing"
    (tmp_path / "x.pt").write_bytes(data)
    assert foreign.read_checkpoint(tmp_path / "x.pt").tensors["a"][0] == 1


def test_two_members_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(saved({"a": torch.ones(9)}))
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        names = [n for n in archive.namelist() if n.endswith("/data/0")]
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(names[0], bytes(36))
    assert "two members of the same name" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (b"some text\n" * 20, "it is not a PyTorch checkpoint"),
        (b"<!DOCTYPE html><html>404</html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (bytes(range(256)), "it is not a PyTorch checkpoint"),
        (b"PK\x03\x04" + b"x" * 100, "damaged or cut short"),
        (b"\x80\x02", "damaged or cut short"),
        (pickle.dumps([1, 2], 2), "damaged or cut short"),
        (b"\xff" * 8 + b"{}" * 9, "safetensors"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    assert what in refusal(tmp_path / "x.pt")


def test_a_zip_file_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "a zip file, but not a PyTorch checkpoint" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.6, 0.99, 0.99999])
def test_truncated_files(tmp_path: Path, old: bool, share: float) -> None:
    data = saved(small_mscnn().state_dict(), old)
    (tmp_path / "x.pt").write_bytes(data[: max(int(share * len(data)), 4)])
    assert "damaged or cut short" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("old", [False, True])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_bit_is_refused_in_one_line(tmp_path: Path, old: bool, data: Any) -> None:
    content = bytearray(saved({"networks.0.0.weight": torch.ones(2, 3, 5, 5)}, old))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    (tmp_path / "x.pt").write_bytes(content)
    refusal(tmp_path / "x.pt")


def test_every_bit_of_a_zip_header_may_be_flipped(tmp_path: Path) -> None:
    """Some make zipfile run out of data (EOFError), which click would take for Ctrl-D."""
    whole = saved({"a": torch.ones(2)}, False)
    for bit in range(8 * 64):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << (bit % 8)
        (tmp_path / "x.pt").write_bytes(content)
        with contextlib.suppress(WeightsError):  # anything else is a fault
            foreign.read_checkpoint(tmp_path / "x.pt")


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file or folder" in refusal(tmp_path / "absent.pt")
    assert "cannot be read" in refusal(tmp_path / ("x" * 400))
    monkeypatch.setattr("vs_deblur.foreign.LARGEST", 10)
    torch.save({}, tmp_path / "x.pt")
    assert "larger than" in refusal(tmp_path / "x.pt")


def test_a_pytorch_that_can_be_tricked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(small_mscnn().state_dict(), tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    assert "PyTorch 2.6 or later" in refusal(tmp_path / "x.pt")


# ------------------------------------------------------------------------------------- the output


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"params": small_mscnn().state_dict()}, tmp_path / "x.pth")
    return tmp_path / "x.pth"


def test_the_provenance_is_in_the_file_and_shown(checkpoint: Path, tmp_path: Path) -> None:
    converted(checkpoint, tmp_path / "x.safetensors")
    row = json.loads(invoke(models.command, "info", tmp_path / "x.safetensors", "--json").out)
    assert row["provenance"]["sources"] == {"x.pth": sha256_of(checkpoint)}
    assert row["provenance"]["layout"] == "a state dict"
    assert row["provenance"]["notes"] == ["taken from params"]
    text = invoke(models.command, "info", tmp_path / "x.safetensors").out
    assert f"x.pth ({sha256_of(checkpoint)})" in text
    assert "vs-deblur 0." in text
    assert str(tmp_path) not in str(row["provenance"])


DEEP = '{"a":' * 900 + "1" + "}" * 900
STRANGE = ("", DEEP, "[" * 100_000, "[1]", '{"a\\u001b[2J": {"b": [1, "\\u0007"]}}')


@pytest.mark.parametrize("value", STRANGE)
def test_strangers_provenance_does_no_harm(tmp_path: Path, value: str) -> None:
    write_network(small_mscnn(), tmp_path / "x.safetensors", extra={"provenance": value})
    result = invoke(models.command, "info", tmp_path / "x.safetensors")
    assert result.code == 0
    assert all(line.isprintable() for line in result.out.splitlines())


def test_the_same_bytes_each_time(checkpoint: Path, tmp_path: Path) -> None:
    converted(checkpoint, tmp_path / "a.safetensors")
    converted(checkpoint, tmp_path / "b.safetensors")
    assert sha256_of(tmp_path / "a.safetensors") == sha256_of(tmp_path / "b.safetensors")
    extra = {f"key{i}": "€" * i for i in range(20)}
    for name in ("c", "d"):
        write_network(small_mscnn(), tmp_path / name, extra=extra)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()
    assert read_tensors(tmp_path / "c")[1] == {**extra, "network": "mscnn"}


def test_an_output_that_exists_stays(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.safetensors"
    output.write_text("precious")
    result = convert(checkpoint, output)
    assert result.code == 2
    assert "--overwrite" in str(result.error)
    assert output.read_text() == "precious"
    converted(checkpoint, output, "--overwrite")


def test_outputs_that_cannot_be(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    assert convert(checkpoint, tmp_path).code == 4
    assert convert(checkpoint, tmp_path / "no" / "x.safetensors").code == 4
    assert convert(checkpoint, Path("/dev/null"), "--overwrite").code == 4
    assert convert(checkpoint, checkpoint, "--overwrite").code == 2
    assert convert(folder, folder / "encoder_lv1.pkl", "--overwrite").code == 2


def test_a_full_disk_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    before = sorted(tmp_path.iterdir())
    result = convert(checkpoint, tmp_path / "x.safetensors")
    assert result.code == 4
    assert "No space left on device" in str(result.error)
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_loaded_again_is_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: str) -> None:
        assert Path(model).stat().st_size > 100
        raise WeightsError("no good", model)

    output = tmp_path / "x.safetensors"
    converted(checkpoint, output)
    good = output.read_bytes()
    monkeypatch.setattr(weights, "load", broken)
    assert convert(checkpoint, output, "--overwrite").code == 5
    assert output.read_bytes() == good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth", "x.safetensors"]


@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=["once", "overwrite"])
def test_two_at_once(checkpoint: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Both succeed, or one says that the other was first."""
    output = tmp_path / "x.safetensors"
    # Each waits after it has looked at the output, until the other has as well.
    program = f"""
import time
from pathlib import Path
from vs_deblur import convert
honest, here = convert.convert, Path({str(tmp_path)!r})

def read(*arguments):
    while len(list(here.glob("*.part"))) < 2:
        time.sleep(0.01)
    time.sleep(0.5)
    return honest(*arguments)

convert.convert = read
from vs_deblur.cli import main
main()
"""
    convert_it = ["models", "convert", str(checkpoint), "-o", str(output), *options]
    command = [sys.executable, "-c", program, *convert_it]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    codes = [process.returncode for process in both]
    assert codes.count(0) == (2 if options else 1), said
    for ended, (out, err) in zip(codes, said, strict=True):
        if ended == 0:
            assert out.startswith(str(output))
            assert err == ""
        else:
            assert ended == 4
            assert out == ""
            assert err.startswith("vs-deblur: error: another file was put there in the meantime")
            assert err.count("\n") == 1
    same(load(str(output)).network, small_mscnn(), picture())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth", "x.safetensors"]


def test_errors_elsewhere_lead_here(checkpoint: Path) -> None:
    for model in (str(checkpoint), "mscnn"):
        with pytest.raises(WeightsError, match="vs-deblur models convert"):
            load(model)


def test_more_metadata_beside_what_shapes_do_not_tell(tmp_path: Path) -> None:
    network = build_network("strcnn_dtb", {"residual": True})
    save_network(network, tmp_path / "x.safetensors", extra={"note": "kept"})
    _, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"network": "strcnn_dtb", "residual": "true", "note": "kept"}
