"""``vs-deblur gimp install``, ``uninstall`` and ``doctor``, without GIMP."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.invoke import invoke
from vs_deblur import gimp
from vs_deblur._version import __version__
from vs_deblur.cli import gimp as command
from vs_deblur.errors import InputError


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A profile, as GIMP makes it."""
    folder = tmp_path / "GIMP" / "3.0"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without GIMP."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("GIMP3_DIRECTORY", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def text(profile: Path) -> str:
    return (profile / "plug-ins/vs-deblur/vs-deblur.py").read_text(encoding="utf-8")


def settings(profile: Path) -> dict[str, Any]:
    path = profile / "plug-ins/vs-deblur/vs-deblur.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# ---------------------------------------------------------------------------- profiles


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, [".config/GIMP", ".var/app/org.gimp.GIMP/config/GIMP"]),
        ("linux", {"XDG_CONFIG_HOME": "/x"}, ["/x/GIMP", ".var/app/org.gimp.GIMP/config/GIMP"]),
        ("darwin", {}, ["Library/Application Support/GIMP"]),
        ("win32", {"APPDATA": "/roaming"}, ["/roaming/GIMP"]),
        ("win32", {}, ["AppData/Roaming/GIMP"]),
    ],
)
def test_where_profiles_are(
    tmp_path: Path, platform: str, environment: dict[str, str], expected: list[str]
) -> None:
    assert gimp.roots(platform, environment, tmp_path) == [tmp_path / e for e in expected]


def test_profiles_of_gimp_3_alone(tmp_path: Path) -> None:
    for name in ("2.10", "3.0", "3.2", "3.x", "backup"):
        (tmp_path / ".config/GIMP" / name).mkdir(parents=True)
    (tmp_path / ".var/app/org.gimp.GIMP/config/GIMP/3.0").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    found = gimp.profiles("linux", {"GIMP3_DIRECTORY": str(tmp_path / "own")}, tmp_path)
    names = ["own", ".config/GIMP/3.0", ".config/GIMP/3.2"]
    names.append(".var/app/org.gimp.GIMP/config/GIMP/3.0")
    assert found == [tmp_path / n for n in names]


# ---------------------------------------------------------------------------- install


def test_install_into_every_profile_that_is_found(home: Path) -> None:
    for name in ("3.0", "3.2"):
        (home / ".config/GIMP" / name).mkdir(parents=True)
    result = invoke(command.install)
    assert result.code == 0, result.error
    for name in ("3.0", "3.2"):
        folder = home / ".config/GIMP" / name / "plug-ins/vs-deblur"
        assert f"installed {__version__}: {folder}" in result.out
        assert sorted(p.name for p in folder.iterdir()) == ["vs-deblur.json", "vs-deblur.py"]
        assert (folder / "vs-deblur.py").stat().st_mode & stat.S_IXUSR
        ast.parse((folder / "vs-deblur.py").read_text(encoding="utf-8"))
    assert "restart GIMP" in result.out


def test_settings_start_this_python(profile: Path) -> None:
    assert invoke(command.install, "--profile", profile).code == 0
    found = settings(profile)
    assert found["python"] == sys.executable
    assert found["argv"][-4:] == ["-m", "vs_deblur", "gimp", "worker"]
    assert found["version"] == __version__
    assert found["models"][0] == ["auto", "Automatic"]
    assert ["photo_lite", "photo lite"] in found["models"]
    assert f'VERSION = "{__version__}"' in text(profile)


def test_models_of_ones_own_are_offered(profile: Path, small_weights: Path) -> None:
    assert invoke(command.install, "--profile", profile, "--model", small_weights).code == 0
    assert settings(profile)["models"][-1] == [
        str(small_weights),
        small_weights.stem.replace("_", " "),
    ]


def test_a_model_that_is_none_is_not_offered(profile: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    result = invoke(command.install, "--profile", profile, "--model", tmp_path / "bad.safetensors")
    assert result.code == 5
    assert not (profile / "plug-ins").exists()


def test_a_model_that_was_damaged_is_left_out_by_the_next_install(
    profile: Path, small_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(small_weights.read_bytes())
    assert invoke(command.install, "--profile", profile, "--model", mine).code == 0
    mine.write_bytes(b"damaged")
    assert invoke(command.install, "--profile", profile).code == 0
    assert str(mine) not in [value for value, _ in settings(profile)["models"]]
    assert "no longer offered" in caplog.text


def test_files_of_one_name_can_be_told_apart(
    profile: Path, small_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / small_weights.name
    other.write_bytes(small_weights.read_bytes())
    models = ("--model", small_weights, "--model", other, "--model", other)
    result = invoke(command.install, "--profile", profile, *models)
    assert result.code == 0, result.error
    values, labels = zip(*settings(profile)["models"], strict=True)
    assert values[-2:] == (str(small_weights), str(other))
    assert len(set(labels)) == len(labels)


def test_a_model_for_video_is_warned_of(
    profile: Path, small_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert invoke(command.install, "--profile", profile, "--model", small_weights).code == 0
    assert "made for video" in caplog.text


@pytest.mark.parametrize("name", ["photo_lite", "gone.safetensors"])
def test_models_are_given_as_files(profile: Path, name: str) -> None:
    result = invoke(command.install, "--profile", profile, "--model", name)
    assert result.code == 5
    assert "wants a safetensors file" in str(result.error)


@pytest.mark.parametrize("name", [".", "2.10", "3.0/plug-ins"])
def test_what_is_no_profile_is_refused(profile: Path, name: str) -> None:
    folder = profile.parent / name
    folder.mkdir(exist_ok=True)
    result = invoke(command.install, "--profile", folder)
    assert result.code == 3
    assert "not a profile of GIMP 3" in str(result.error)


def test_install_again_replaces(profile: Path) -> None:
    folder = profile / "plug-ins/vs-deblur"
    folder.mkdir(parents=True)
    (folder / "vs-deblur.py").write_text("old")
    assert invoke(command.install, "--profile", profile).code == 0
    assert "MotionDeblur" in text(profile)


@pytest.mark.parametrize("snap", [False, True])
def test_no_profile_is_said(home: Path, snap: bool) -> None:
    if snap:
        (home / "snap/gimp").mkdir(parents=True)
    result = invoke(command.install)
    assert result.code == 3
    words = "GIMP from Snap may not start other programs" if snap else "start GIMP once"
    assert words in str(result.error)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    result = invoke(command.install, "--profile", tmp_path / "3.0")
    assert result.code == 3
    assert "start GIMP once" in str(result.error)


def test_a_profile_that_cannot_be_written(profile: Path) -> None:
    (profile / "plug-ins").write_text("a file where a folder is to be")
    result = invoke(command.install, "--profile", profile)
    assert result.code == 4
    assert "cannot install" in str(result.error)


def test_python_without_ways_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], 1)

    assert gimp.worker_arguments(sys.executable)[0] == "-I"
    monkeypatch.setattr(subprocess, "run", run)  # packages of the user alone
    assert gimp.worker_arguments(sys.executable)[:2] == ("-E", "-P")


def test_uninstall(profile: Path) -> None:
    assert invoke(command.install, "--profile", profile).code == 0
    result = invoke(command.uninstall, "--profile", profile)
    assert result.code == 0
    assert f"removed {profile / 'plug-ins/vs-deblur'}" in result.out
    assert list((profile / "plug-ins").iterdir()) == []
    assert "was not installed" in invoke(command.uninstall, "--profile", profile).out


# ---------------------------------------------------------------------------- doctor


def test_doctor_of_what_is_well(profile: Path) -> None:
    assert invoke(command.install, "--profile", profile).code == 0
    result = invoke(command.doctor, "--profile", profile)
    assert result.code == 0, result.out
    assert f"ok    action {__version__}" in result.out
    assert f"ok    worker {__version__}" in result.out
    assert "ok    model photo lite: photo_lite on " in result.out


def change(profile: Path, **fields: Any) -> None:
    path = profile / "plug-ins/vs-deblur/vs-deblur.json"
    path.write_text(json.dumps(settings(profile) | fields))


# A worker of another time.
FOREIGN = """
import sys
from vs_deblur.bridge import pack
sys.stdout.buffer.write(b"".join(pack("hello", protocol=99, **{"version": "7.7"})))
sys.stdout.flush()
sys.stdin.read()
"""


def old(profile: Path) -> None:
    path = profile / "plug-ins/vs-deblur/vs-deblur.py"
    path.write_text(text(profile).replace(f'VERSION = "{__version__}"', 'VERSION = "0.0.1"'))


def no_bit(profile: Path) -> None:
    (profile / "plug-ins/vs-deblur/vs-deblur.py").chmod(0o644)


@pytest.mark.parametrize(
    ("harm", "words", "code"),
    [
        (gimp.uninstall, "the action is not there", 6),
        (old, "of version 0.0.1", 6),
        (no_bit, "not executable", 6),
        (lambda p: change(p, version="0.0.1"), "its settings of 0.0.1", 6),
        (lambda p: change(p, python="/gone/python"), "cannot be started", 6),
        (lambda p: change(p, argv=["-c", "print('hello')"]), "ended without an answer", 6),
        (lambda p: change(p, argv=["-c", "import gone_x"]), "No module named 'gone_x'", 6),
        (lambda p: change(p, argv=["-c", FOREIGN]), "of version 7.7, protocol 99", 6),
        (lambda p: change(p, argv=["-c", FOREIGN.replace("version", "v")]), "version None", 6),
        (lambda p: change(p, argv=["-c", "print('no frame at all')"]), "not a frame", 6),
        (lambda p: change(p, models=[["nonsense", "x"]]), "nonsense", 5),
        (lambda p: change(p, models=None), "not written by vs-deblur", 6),
    ],
)
def test_doctor_of_what_is_not(profile: Path, harm: Any, words: str, code: int) -> None:
    if harm is no_bit and os.name != "posix":
        pytest.skip("files are executable by their name here")
    assert invoke(command.install, "--profile", profile).code == 0
    harm(profile)
    result = invoke(command.doctor, "--profile", profile)
    assert words in result.out
    assert result.code == code


def test_doctor_obeys_the_variable(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke(command.install, "--profile", profile).code == 0
    monkeypatch.setenv("VS_DEBLUR_PYTHON", "/gone/other/python")
    result = invoke(command.doctor, "--profile", profile)
    assert "/gone/other/python" in result.out
    assert result.code == 6


def test_doctor_without_gimp(home: Path) -> None:
    assert home.is_dir()
    assert invoke(command.doctor).code == 6


def test_settings_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gimp install"):
        gimp.Settings.read(tmp_path / "vs-deblur.json")


# ---------------------------------------------------------------------------- the action


def test_the_action_needs_nothing_but_gi_and_the_standard_library() -> None:
    tree = ast.parse(gimp.action_source().read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names - sys.stdlib_module_names == {"gi"}


def test_the_action_keeps_the_same_variables_from_the_worker() -> None:
    """The action cannot import the list: it has its own."""
    source = gimp.action_source().read_text(encoding="utf-8")
    (line,) = (text for text in source.splitlines() if text.startswith("HOST_VARIABLES = "))
    assert set(ast.literal_eval(line.partition(" = ")[2])) == gimp.HOST_VARIABLES


def test_the_action_is_of_this_version() -> None:
    assert f'VERSION = "{__version__}"' in gimp.action_source().read_text(encoding="utf-8")
