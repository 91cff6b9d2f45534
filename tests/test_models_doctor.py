"""``vs-deblur models`` and ``vs-deblur doctor``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.invoke import invoke
from tests.small import SMALL_LITE
from vs_deblur import engine, weights
from vs_deblur.cli import doctor, models
from vs_deblur.cli.doctor import Check, verdict
from vs_deblur.errors import DeviceError, WeightsError
from vs_deblur.weights import sha256_of, shipped
from vs_deblur_models.registry import ENTRIES, build_network


@pytest.fixture
def folder(tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Shipped weights of our own: "tiny", the default, and "other"."""
    cards = []
    for name in ("tiny", "other"):
        shutil.copy(small_weights, tmp_path / f"{name}.safetensors")
        card = {
            "name": name,
            "file": f"{name}.safetensors",
            "network": "strcnn_dtb_lite",
            "sha256": sha256_of(small_weights),
            "licence": "MIT",
            "training_data": "photographs",
            "recipe": f"{name}.toml",
            "gain_db": {"a": 1.0, "b": 2.0},
            "default": name == "tiny",
        }
        cards.append(card)
    (tmp_path / "manifest.json").write_text(json.dumps({"models": cards}))
    monkeypatch.setattr(weights, "weights_folder", lambda: tmp_path)
    shipped.cache_clear()
    yield tmp_path
    shipped.cache_clear()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# ------------------------------------------------------------------------------------------ models


def test_the_table_of_models(folder: Path) -> None:
    result = invoke(models.command)
    assert result.code == 0
    head, tiny, other, *without, note, hint = (x.split() for x in result.out.splitlines())
    assert note[0] == "gain:"
    assert hint[:2] == ["no", "weights:"]
    assert "`vs-deblur models convert` makes a file of published ones" in " ".join(hint)
    assert " ".join(hint).endswith("published ones of mscnn, srn, dmphn")
    assert head[:7] == ["name", "kind", "default", "licence", "size", "parameters", "gain"]
    assert head[7:] == ["GFLOP", "640x480"]
    network = build_network("strcnn_dtb_lite", SMALL_LITE)
    parameters = f"{sum(p.numel() for p in network.parameters()):,}"
    gflop = f"{network.spec.flops_per_pixel * 640 * 480 / 1e9:.1f}"
    size = f"{(folder / 'tiny.safetensors').stat().st_size / 1e6:.1f}"
    assert tiny == ["tiny", "video", "yes", "MIT", size, "MB", parameters, "+1.50", "dB", gflop]
    assert other == ["other", "video", "MIT", size, "MB", parameters, "+1.50", "dB", gflop]
    names = {line[0]: line[1:5] for line in without}
    assert names.keys() == ENTRIES.keys() - {"strcnn_dtb_lite"}
    assert names["mscnn"] == ["photo", "-", "no", "weights"]
    assert names["cnn"][0] == "video"


def test_models_that_ship_are_listed() -> None:
    result = invoke(models.command, "--json")
    assert result.code == 0
    assert invoke(models.command, "list", "--json").out == result.out
    rows = [row for row in json.loads(result.out) if row["shipped"]]
    assert [r["name"] for r in rows] == list(shipped())
    assert all(r["ok"] and r["parameters"] > 0 and r["bytes"] > 0 for r in rows)


@pytest.mark.parametrize("gone", [True, False])
def test_a_damaged_model_is_listed_and_ends_with_5(folder: Path, gone: bool) -> None:
    path = folder / "other.safetensors"
    path.unlink() if gone else damage(path)
    result = invoke(models.command)
    assert result.code == 5
    assert "other" in str(result.error)
    assert "damaged" in result.out.splitlines()[2]
    assert "damaged" not in result.out.splitlines()[1]
    rows = json.loads(invoke(models.command, "--json").out)[:2]
    assert [r["ok"] for r in rows] == [True, False]
    assert rows[1]["problem"] == str(result.error)


@pytest.mark.parametrize("name", ["tiny", "auto"])
def test_info_of_a_shipped_model(folder: Path, name: str) -> None:
    row = json.loads(invoke(models.command, "info", name, "--json").out)
    spec = build_network("strcnn_dtb_lite", SMALL_LITE).spec
    assert row["name"] == "tiny"
    assert row["sha256_ok"] is True
    assert row["training_data"] == "photographs"
    assert row["gain_db"] == {"a": 1.0, "b": 2.0}
    for key in ("look_ahead", "look_behind", "receptive_field", "multiple_of", "minimum"):
        assert row[key] == getattr(spec, key)
    for key, value in SMALL_LITE.items():
        assert row["config"][key] == (list(value) if isinstance(value, tuple) else value)
    text = invoke(models.command, "info", name).out
    for fact in ("(ok)", "photographs", "gain on b", "+2.00 dB", f"{spec.receptive_field} pixels"):
        assert fact in text


def test_info_of_a_file_of_ones_own(small_weights: Path) -> None:
    row = json.loads(invoke(models.command, "info", small_weights, "--json").out)
    assert (row["name"], row["network"], row["ok"]) == ("small", "strcnn_dtb_lite", True)
    assert row["sha256"] == sha256_of(small_weights)
    assert "sha256_ok" not in row
    text = invoke(models.command, "info", small_weights).out
    assert sha256_of(small_weights) in text
    assert "licence" not in text
    assert "gain" not in text


def test_info_of_a_damaged_model_says_what_is_known(folder: Path) -> None:
    damage(folder / "tiny.safetensors")
    result = invoke(models.command, "info", "tiny")
    assert result.code == 5
    assert "sha256 differs" in str(result.error)
    assert "(differs)" in result.out
    assert "photographs" in result.out
    row = json.loads(invoke(models.command, "info", "tiny", "--json").out)
    assert (row["ok"], row["sha256_ok"]) == (False, False)


def test_info_of_a_strangers_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    result = invoke(models.command, "info", tmp_path / "x.safetensors")
    assert result.code == 5
    assert fact_of(result.out, "network") == "unknown"


def fact_of(text: str, name: str) -> str:
    (line,) = (x for x in text.splitlines() if x.strip().startswith(name))
    return line.strip()[len(name) :].strip()


@pytest.mark.parametrize("name", sorted(ENTRIES.keys() - {"strcnn_dtb_lite", "photo_lite"}))
def test_info_of_a_network_without_weights(name: str) -> None:
    """What is known, and how to come by weights where there are published ones."""
    result = invoke(models.command, "info", name)
    assert (result.code, result.error) == (0, None)
    network = build_network(name)
    assert result.out.splitlines()[0] == name
    parameters = sum(p.numel() for p in network.parameters())
    assert fact_of(result.out, "parameters") == f"{parameters:,}"
    assert fact_of(result.out, "paper") == ENTRIES[name].paper
    weights_fact = fact_of(result.out, "weights")
    assert weights_fact.startswith("no weights: not trained yet")
    assert ("convert" in weights_fact) == (name in ("mscnn", "srn", "dmphn"))
    row = json.loads(invoke(models.command, "info", name, "--json").out)
    assert (row["name"], row["shipped"], row["parameters"]) == (name, False, parameters)


def test_a_network_without_weights_cannot_be_loaded() -> None:
    with pytest.raises(WeightsError, match=r"no trained weights for cnn are shipped; shipped: \w"):
        weights.load("cnn")
    assert "convert" not in str(weights.no_weights("cnn"))
    assert "convert" in str(weights.no_weights("srn"))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 a photo", b"<html>"])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_info_of_what_is_no_weights_file(
    tmp_path: Path, content: bytes, form: tuple[str, ...]
) -> None:
    """The error alone."""
    (tmp_path / "IMG_1.jpg").write_bytes(content)
    result = invoke(models.command, "info", tmp_path / "IMG_1.jpg", *form)
    assert (result.code, result.out) == (5, "")
    assert "weights cannot be read" in str(result.error)


@pytest.mark.parametrize("model", ["nothing", "./absent.safetensors"])
def test_info_of_what_is_not_there(model: str) -> None:
    result = invoke(models.command, "info", model)
    assert (result.code, result.out) == (5, "")


def test_help_is_fast() -> None:
    """No `--help` loads what only the work needs."""
    code = """
import sys
from vs_deblur.cli import group
for name in ("models", "doctor", "measure"):
    try:
        group.main([name, "--help"], standalone_mode=False)
    except SystemExit:
        pass
heavy = {"torch", "numpy", "av", "vapoursynth", "PIL", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "PSNR and SSIM" in done.stdout


# ------------------------------------------------------------------------------------------ doctor


def by_name(out: str) -> dict[str, tuple[str, str]]:
    lines = (line.split(maxsplit=1) for line in out.splitlines())
    return {
        rest.split(":", 1)[0] if not rest.startswith("cuda:") else "cuda": (status, rest)
        for status, rest in lines
    }


def test_doctor_is_content() -> None:
    result = invoke(doctor.command)
    assert result.code == 0
    lines = by_name(result.out)
    assert not [line for line in lines.values() if line[0] == "fail"]
    assert torch.__version__.split("+")[0] in lines["torch"][1]
    assert sys.version.split()[0] in lines["python"][1]
    device = engine.choose_device("auto")
    precision, why = engine.choose_precision("auto", device)
    assert lines["precision auto"][1] == f"precision auto: {precision}: {why}"
    for name, card in shipped().items():
        status, text = lines[f"model {name}"]
        assert status == "ok"
        use = {"video": "default for video", "photo": "default for photos"}[card.kind]
        assert text.endswith(use) == card.default
    assert lines["self-test"][0] == lines["self-test photos"][0] == "ok"
    assert weights.default_model("photo") in lines["self-test photos"][1]
    for name in ("pillow", "tifffile"):
        assert lines[name] == ("ok", f"{name}: {metadata.version(name)}")


def test_doctor_as_json() -> None:
    result = invoke(doctor.command, "--json")
    answer = json.loads(result.out)
    assert answer["exit_code"] == result.code == 0
    assert all(c.keys() == {"name", "status", "detail"} for c in answer["checks"])
    assert "self-test" in [c["name"] for c in answer["checks"]]


def test_doctor_sees_damaged_weights_and_goes_on(folder: Path) -> None:
    damage(folder / "tiny.safetensors")
    result = invoke(doctor.command)
    assert result.code == 5
    lines = by_name(result.out)
    assert lines["model tiny"][0] == "fail"
    assert "sha256 differs" in lines["model tiny"][1]
    assert lines["model other"][0] == "ok"
    assert lines["self-test"][0] == "fail"


def test_doctor_sees_a_missing_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    shipped.cache_clear()
    result = invoke(doctor.command)
    assert result.code == 5
    assert by_name(result.out)["models"][0] == "fail"


def test_doctor_sees_a_device_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise DeviceError("the device failed", "cuda:0")

    monkeypatch.setattr(engine.Deblurrer, "step", broken)
    result = invoke(doctor.command)
    assert result.code == 6
    assert by_name(result.out)["self-test"] == ("fail", "self-test: the device failed (cuda:0)")


def test_doctor_sees_a_network_that_is_not_finite(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wild(_: Any, frames: Any) -> Any:
        return (f * float("inf") for f in frames)

    monkeypatch.setattr(engine.Deblurrer, "video", wild)
    result = invoke(doctor.command)
    assert result.code == 1
    assert "not finite" in by_name(result.out)["self-test"][1]


def test_doctor_survives_anything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies() -> Iterator[Check]:
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(doctor.CHECKS, "devices", dies)
    result = invoke(doctor.command)
    assert result.code == 1
    assert by_name(result.out)["devices"] == ("fail", "devices: two lines")
    assert by_name(result.out)["self-test"][0] == "ok"


def test_doctor_without_the_optional_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor._version

    def version(*names: str) -> str | None:
        absent = {"vapoursynth", "vapoursynth-bestsource", "av", "tifffile"}
        return None if absent & set(names) else there(*names)

    monkeypatch.setattr(doctor, "_version", version)
    result = invoke(doctor.command)
    assert result.code == 0
    lines = by_name(result.out)
    for name in ("vapoursynth", "av", "tifffile", "filter"):
        assert lines[name][0] == "warn"
    assert "vs-deblur[video]" in lines["av"][1]
    assert "vs-deblur[photo16]" in lines["tifffile"][1]
    # The folder has no model for photos, which the other commands do without.
    assert lines["self-test photos"][0] == "warn"


@pytest.mark.parametrize("fault", ["values", "device"])
def test_doctor_sees_that_photos_fail(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def wild(_: Any, picture: Any) -> Any:
        if fault == "device":
            raise DeviceError("the device failed", "cuda:0")
        return picture * float("inf")

    monkeypatch.setattr(engine.Deblurrer, "photo", wild)
    (check,) = (c for c in doctor.examine() if c.name == "self-test photos")
    assert (check.status, check.exit_code) == ("fail", 6 if fault == "device" else 1)


def test_doctor_names_cuda_devices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory, major, minor = "Card", 8 << 30, 9, 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: Properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Card")
    lines = {c.name: c.detail for c in doctor.check_devices()}
    assert lines["cuda:0"] == "Card, 8.0 GiB, sm_90"
    assert lines["device auto"] == "cuda:0"
    assert lines["precision auto"] == "fp16: CUDA device"
    assert "cuda" not in lines


@pytest.mark.parametrize(
    ("codes", "expected"), [([], 0), ([1], 1), ([1, 6], 6), ([6, 5, 1], 5), ([3], 1)]
)
def test_the_verdict(codes: list[int], expected: int) -> None:
    checks = [Check("x", "ok", ""), Check("y", "warn", "")]
    assert verdict([*checks, *(Check("z", "fail", "", c) for c in codes)]) == expected


@pytest.mark.parametrize("code", [0, 1])
def test_doctor_tells_whether_vspipe_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    program = tmp_path / "vspipe"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (check,) = doctor.check_vspipe()
    assert check.status == ("warn" if code else "ok")
    assert ("vapoursynth config" in check.detail) == bool(code)


def test_doctor_does_without_vspipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = doctor.check_vspipe()
    assert (check.status, check.exit_code) == ("warn", 0)
    assert "not found" in check.detail
