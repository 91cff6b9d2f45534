"""Weights that are missing, damaged, hostile or of another network (faults 38 to 44)."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.hostile import PROTOCOLS, Hostile, save_hostile
from vs_deblur import weights
from vs_deblur.engine import Deblurrer
from vs_deblur.errors import WeightsError
from vs_deblur.weights import load, locate, sha256_of, shipped
from vs_deblur_models import registry
from vs_deblur_models.registry import ENTRIES, build_network, save_network

State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of shipped weights of its own: one model, "tiny", which is the default."""
    shutil.copy(small_weights, tmp_path / "tiny.safetensors")
    card = {
        "name": "tiny",
        "file": "tiny.safetensors",
        "network": "strcnn_dtb_lite",
        "sha256": sha256_of(small_weights),
        "licence": "MIT",
        "training_data": "none",
        "recipe": "none.toml",
        "gain_db": {"a": 1.0, "b": 2.0},
        "default": True,
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"models": [card]}))
    monkeypatch.setattr(weights, "weights_folder", lambda: tmp_path)
    shipped.cache_clear()
    yield tmp_path
    shipped.cache_clear()


def refusal(model: str | Path, load_it: Callable[[str], object] = load) -> str:
    """The message with which weights are refused."""
    with pytest.raises(WeightsError) as caught:
        load_it(str(model))
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edited(
    small_weights: Path, target: Path, edit: Callable[[State], None], **metadata: str
) -> Path:
    state = load_file(str(small_weights))
    edit(state)
    save_file(state, target, metadata=metadata or None)
    return target


# --------------------------------------------------------------------------- what ships, and loads


def test_every_shipped_model_is_what_the_manifest_says() -> None:
    assert shipped()
    for name, card in shipped().items():
        loaded = load(name)
        assert loaded.card is card
        assert loaded.network.spec.network == card.network
        assert not loaded.network.training
        assert card.licence
        assert card.training_data
        assert card.gain_db
    kinds = [c.kind for c in shipped().values() if c.default]
    assert "video" in kinds
    assert len(kinds) == len(set(kinds))


def test_a_file_of_ones_own_loads_with_its_values(small_weights: Path) -> None:
    loaded = load(str(small_weights))
    assert (loaded.name, loaded.path, loaded.card) == ("small", small_weights, None)
    state = load_file(str(small_weights))
    ours = loaded.network.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[k], v) for k, v in state.items())
    assert not any(p.requires_grad or p.is_meta for p in loaded.network.parameters())


def test_auto_is_the_default(folder: Path) -> None:
    assert load().name == load("tiny").name == "tiny"
    assert shipped()["tiny"].mean_gain == 1.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_type_becomes_float32(
    small_weights: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    def convert(state: State) -> None:
        for key, value in state.items():
            state[key] = value.to(dtype)

    network = load(str(edited(small_weights, tmp_path / "x.safetensors", convert))).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_loading_draws_no_random_numbers(small_weights: Path) -> None:
    before = torch.get_rng_state()
    load(str(small_weights))
    assert torch.equal(before, torch.get_rng_state())


def test_the_network_does_not_depend_on_the_file_any_more(
    small_weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    shutil.copy(small_weights, path)
    network = load(str(path)).network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with path.open("r+b") as file:  # in place: a mapped file would change with it
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


# -------------------------------------------------------------------------------- 38: not there


def test_an_unknown_name_suggests_the_nearest(folder: Path) -> None:
    assert "did you mean tiny?" in refusal("tinny")
    assert "shipped: tiny" in refusal("something")


@pytest.mark.parametrize("model", ["strcnn", "cnn", "mscnn", "srn", "dmphn"])
def test_a_known_network_without_weights_is_never_run_untrained(folder: Path, model: str) -> None:
    for build in (load, Deblurrer):
        text = refusal(model, build)
        assert f"no trained weights for {model} are shipped" in text
        assert "tiny" in text


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "absent.safetensors"
    assert f"no such weights file ({path})" in refusal(path)
    assert f"a folder is no weights file ({tmp_path})" in refusal(tmp_path)


@pytest.mark.parametrize(
    "model", ["", "~nobody-of-that-name/x.safetensors", "a\0b.safetensors", "x" * 5000]
)
def test_names_that_the_system_refuses(model: str) -> None:
    refusal(model)


def test_a_shipped_file_that_is_gone(folder: Path) -> None:
    (folder / "tiny.safetensors").unlink()
    for model in ("tiny", "auto"):
        text = refusal(model)
        assert "shipped weights are missing" in text
        assert "reinstall" in text


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"models": [{"name": "x"}]}', '{"a": 1}'])
def test_a_damaged_manifest(folder: Path, text: str | None) -> None:
    manifest = folder / "manifest.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    shipped.cache_clear()
    assert "manifest" in refusal("auto")


def test_no_default_of_a_kind(folder: Path) -> None:
    with pytest.raises(WeightsError, match="no photo model is shipped"):
        locate("auto", "photo")


@pytest.mark.parametrize("own", [True, False])
def test_a_file_that_may_not_be_read(
    folder: Path, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    assert load("tiny").name == "tiny"  # the manifest has been read
    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr("safetensors.safe_open", refused)
    assert "Permission denied" in refusal(folder / "tiny.safetensors" if own else "tiny")


# --------------------------------------------------------------------- 39, 40: damaged files

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda b: b"",
    "half": lambda b: b[: len(b) // 2],
    "a byte short": lambda b: b[:-1],
    "junk appended": lambda b: b + b"junk",
    "page": lambda b: b"<!DOCTYPE html><html><body>404</body></html>",
    "noise": lambda b: bytes(range(256)) * 10,
    "huge header": lambda b: b"\xff" * 8 + b[8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shipped_file_shows_both_digests(folder: Path, damage: str) -> None:
    path = folder / "tiny.safetensors"
    expected = sha256_of(path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    for build in (load, Deblurrer):
        text = refusal("tiny", build)
        assert f"sha256 differs: expected {expected}, got {sha256_of(path)}" in text


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("empty", "the file is empty"),
        ("half", "not a whole safetensors file"),
        ("a byte short", "not a whole safetensors file"),
        ("junk appended", "not a whole safetensors file"),
        ("page", "a web page"),
        ("noise", "not a whole safetensors file"),
        ("huge header", "not a whole safetensors file"),
    ],
)
def test_a_damaged_file_of_ones_own(
    small_weights: Path, tmp_path: Path, damage: str, what: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGE[damage](small_weights.read_bytes()))
    text = refusal(path)
    assert what in text
    assert str(path) in text


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_a_shipped_file_is_seen(
    folder: Path, small_weights: Path, data: Any
) -> None:
    content = bytearray(small_weights.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    (folder / "tiny.safetensors").write_bytes(content)
    assert "sha256 differs" in refusal("tiny")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_a_header_loads_whole_or_is_refused(
    tmp_path: Path, small_weights: Path, data: Any
) -> None:
    content = bytearray(small_weights.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    bit = data.draw(st.integers(0, 8 * header - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    try:
        loaded = load(str(path))
    except WeightsError:
        return
    assert all(bool(torch.isfinite(p).all()) for p in loaded.network.parameters())


# ------------------------------------------------------------------------- 41: values not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_name_the_tensor(
    small_weights: Path, tmp_path: Path, value: float
) -> None:
    def spoil(state: State) -> None:
        state["down1.weight"].view(-1)[17] = value

    path = edited(small_weights, tmp_path / "x.safetensors", spoil)
    assert "tensor down1.weight has values that are NaN or infinite" in refusal(path)


def test_values_too_large_for_float32(small_weights: Path, tmp_path: Path) -> None:
    def spoil(state: State) -> None:
        state["head.bias"] = torch.full_like(state["head.bias"], 1e300, dtype=torch.float64)

    assert "tensor head.bias" in refusal(edited(small_weights, tmp_path / "x.safetensors", spoil))


# --------------------------------------------------------------- 42, 43: keys and shapes differ


def _drop(*keys: str) -> Callable[[State], None]:
    def edit(state: State) -> None:
        for key in keys:
            del state[key]

    return edit


def _reshape(key: str, shape: tuple[int, ...]) -> Callable[[State], None]:
    def edit(state: State) -> None:
        state[key] = torch.zeros(shape)

    return edit


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (_drop("up1.bias"), "missing: up1.bias"),
        (_drop("feedback.weight"), "missing: feedback.weight"),
        (_drop("encoder0.0.conv1.weight"), "missing: encoder0.0.conv1.weight"),
        (_reshape("new", (1,)), "left over: new"),
        (_reshape("output.bias", (47,)), "misshapen: output.bias is (47,), not (48,)"),
        (_reshape("head.weight", (8,)), "no strcnn_dtb_lite has such shapes"),
        (_reshape("dtb.beta", (2,)), "misshapen: dtb.beta is (2,), not ()"),
        (_drop("head.weight"), "not weights of a network of ours"),
    ],
)
def test_tensors_missing_left_over_or_misshapen(
    small_weights: Path, tmp_path: Path, edit: Callable[[State], None], what: str
) -> None:
    path = edited(small_weights, tmp_path / "x.safetensors", edit)
    for build in (load, Deblurrer):
        assert what in refusal(path, build)


def test_no_more_than_five_names_of_a_kind(small_weights: Path, tmp_path: Path) -> None:
    def edit(state: State) -> None:
        for i in range(9):
            state[f"extra{i}"] = torch.zeros(1)

    text = refusal(edited(small_weights, tmp_path / "x.safetensors", edit))
    assert "extra4 and 4 more" in text
    assert "extra5" not in text


def test_weights_of_a_stranger_list_keys_and_known_networks(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"layer{i}.weight": torch.zeros(3) for i in range(9)}, path)
    text = refusal(path)
    assert "keys: layer0.weight, layer1.weight" in text
    assert "layer5" not in text
    assert all(name in text for name in ENTRIES)


def test_a_file_that_says_it_is_another_network(small_weights: Path, tmp_path: Path) -> None:
    path = edited(small_weights, tmp_path / "x.safetensors", lambda s: None, network="strcnn_dtb")
    assert "look like weights of strcnn_dtb_lite, not of strcnn_dtb" in refusal(path)


def test_a_manifest_that_says_it_is_another_network(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"strcnn_dtb_lite"', '"strcnn"'))
    shipped.cache_clear()
    assert "look like weights of strcnn_dtb_lite, not of strcnn" in refusal("tiny")


def test_widths_are_inferred(tmp_path: Path) -> None:
    config = {"channels": (12, 20, 28), "encoder_blocks": (1, 2, 1), "feedback_channels": 4}
    network = build_network("strcnn_dtb_lite", config)
    save_network(network, tmp_path / "x.safetensors")
    assert load(str(tmp_path / "x.safetensors")).network.config == network.config


def test_a_small_file_cannot_ask_for_a_large_network(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths are read from the file: no memory may be taken before all of them are compared."""

    def edit(state: State) -> None:
        state["head.weight"] = torch.zeros(100_000, state["head.weight"].shape[1], 1, 1)

    path = edited(small_weights, tmp_path / "x.safetensors", edit)
    taken: list[int] = []
    build = registry.build_network

    def counted(*args: Any) -> Any:
        network = build(*args)
        taken.append(sum(p.numel() for p in network.parameters() if not p.is_meta))
        return network

    monkeypatch.setattr(registry, "build_network", counted)
    assert "misshapen" in refusal(path)
    assert taken == [0]


def test_a_network_without_frames_is_none_of_ours(small_weights: Path, tmp_path: Path) -> None:
    def edit(state: State) -> None:
        c0 = state["head.weight"].shape[0]
        state["head.weight"] = torch.zeros(c0, 16, 3, 3)
        state["feedback.weight"] = torch.zeros(64, c0, 3, 3)
        state["feedback.bias"] = torch.zeros(64)

    refusal(edited(small_weights, tmp_path / "x.safetensors", edit))


# ------------------------------------------------------------------------------- 44: pickles


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors", ""])
@pytest.mark.parametrize("way", ["zip", "legacy", *PROTOCOLS[2:]])
def test_a_pickle_is_never_run(tmp_path: Path, suffix: str, way: str | int) -> None:
    mark, path = tmp_path / "mark", tmp_path / f"evil{suffix}"
    save_hostile(Hostile(mark), path, way)
    text = refusal(path)
    assert "PyTorch checkpoint" in text
    assert "nothing in a pickle is ever run" in text
    refusal(path, Deblurrer)
    assert not mark.exists()


# --------------------------------------------------------------- an untrained network never runs


def test_every_weight_that_runs_comes_from_the_file(
    small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With initial values poisoned, nothing of them is left in what the engine runs."""
    build = registry.build_network

    def poisoned(*args: Any) -> Any:
        network = build(*args)
        with torch.no_grad():
            for p in network.parameters():
                p.fill_(float("nan"))
        return network

    monkeypatch.setattr(registry, "build_network", poisoned)
    deblurrer = Deblurrer(str(small_weights), device="cpu", precision="fp32")
    assert all(bool(torch.isfinite(p).all()) for p in deblurrer.network.parameters())


@settings(max_examples=60, deadline=None)
@given(model=st.text(max_size=30))
@example(model="~\x00")
def test_no_name_gives_a_network_without_a_file(model: str) -> None:
    with contextlib.suppress(WeightsError):  # any other error, or a network from nowhere, fails
        assert load(model).path.is_file()
