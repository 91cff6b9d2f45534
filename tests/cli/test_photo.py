"""``vs-deblur photo``: which files, where to, what is said, and the exit code."""

from __future__ import annotations

import resource
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.invoke import Result, invoke
from tests.pictures import Engine, jpeg, png, waves
from vs_deblur.cli import _progress
from vs_deblur.cli._common import ModelSettings
from vs_deblur.cli._signals import Stop, current_stop
from vs_deblur.cli.photo import TileProgress, command
from vs_deblur.errors import EngineError, InputError, OutputError, Stopped, UsageError
from vs_deblur.photofile.picture import check_size

Photo = Callable[..., Result]


@pytest.fixture
def engine() -> Engine:
    return Engine(lambda x: 255 - x if x.dtype == np.uint8 else x)


@pytest.fixture
def photo(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Photo]:
    """The command, with an engine that inverts 8-bit pictures in the place of a network."""

    def deblurrer(self: ModelSettings, *, quiet: bool = False, kind: str = "video") -> Any:
        assert kind == "photo"
        return engine

    monkeypatch.setattr(ModelSettings, "deblurrer", deblurrer)
    stop = current_stop()
    stop.frames = 0
    yield lambda *args: invoke(command, *args)
    stop.frames, stop.unit, stop.signum = 0, "frames", None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, a text file, a raw file, a hidden file, and a folder with a picture."""
    inside = tmp_path / "in"
    (inside / "more").mkdir(parents=True)
    (inside / "b.jpg").write_bytes(jpeg(waves(9, 9, 3)))
    (inside / "a.PNG").write_bytes(png(waves(9, 9, 3)))
    (inside / "more" / "a.png").write_bytes(png(waves(5, 5, 3)))
    for name in ("notes.txt", "c.nef", ".b.jpg"):
        (inside / name).write_bytes(b"nothing")
    return inside


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def inverted(path: Path) -> bool:
    with Image.open(path) as image:
        return np.array_equal(np.asarray(image), 255 - waves(image.height, image.width, 3))


# ---------------------------------------------------------------------------- where to


def test_beside_the_input_by_default(photo: Photo, folder: Path) -> None:
    before = (folder / "a.PNG").read_bytes()
    result = photo(folder / "a.PNG")
    assert result.code == 0
    assert inverted(folder / "a-sharp.PNG")
    assert (folder / "a.PNG").read_bytes() == before
    assert "a.PNG -> " in result.err
    assert "9x9 RGB, 8 bit" in result.err
    assert result.out == ""


def test_into_a_file_whose_suffix_is_the_format(photo: Photo, folder: Path) -> None:
    assert photo(folder / "a.PNG", "-o", folder / "x.tiff").code == 0
    with Image.open(folder / "x.tiff") as image:
        assert image.format == "TIFF"


def test_into_a_folder_under_the_same_name(photo: Photo, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = photo(folder / "a.PNG", folder / "b.jpg", "-o", tmp_path / "out")
    assert result.code == 0
    assert names(tmp_path / "out") == ["a.PNG", "b.jpg"]
    assert "done: 2 of 2 photos" in result.err


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["in"], "out"),
        (["in"], "out/"),
        (["in"], "out.d/"),
        (["in/a.PNG", "in/b.jpg"], "out"),
        (["in/a.PNG"], "out/"),
    ],
)
def test_the_folder_is_made(
    photo: Photo,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    inputs: list[str],
    output: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    assert photo(*inputs, "-o", output).code == 0
    assert names(Path(output)) == ["a.PNG", "b.jpg"][: 1 if inputs == ["in/a.PNG"] else 2]


def test_no_folder_is_made_for_nothing(photo: Photo, folder: Path, tmp_path: Path) -> None:
    for name in ("a.PNG", "b.jpg"):
        (folder / name).write_bytes(b"no picture")
    assert photo(folder, "-o", tmp_path / "out").code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "kind"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("tif", "TIFF"), ("tiff", "TIFF")]
)
def test_formats_by_their_other_names(photo: Photo, folder: Path, name: str, kind: str) -> None:
    assert photo(folder / "a.PNG", "--format", name).code == 0
    suffix = {"JPEG": ".jpg", "TIFF": ".tif"}[kind]
    with Image.open(folder / f"a-sharp{suffix}") as image:
        assert image.format == kind


def test_a_format_changes_the_suffix(photo: Photo, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert photo(folder / "a.PNG", "-o", tmp_path / "out", "--format", "jpeg").code == 0
    assert photo(folder / "a.PNG", "--format", "webp").code == 0
    assert names(tmp_path / "out") == ["a.jpg"]
    with Image.open(folder / "a-sharp.webp") as image:
        assert image.format == "WEBP"


def test_a_suffix_that_lies_is_put_right(photo: Photo, folder: Path) -> None:
    (folder / "a.PNG").rename(folder / "lie.jpg")
    assert photo(folder / "lie.jpg").code == 0
    assert inverted(folder / "lie-sharp.png")


def test_pictures_of_a_folder(photo: Photo, folder: Path) -> None:
    assert photo(folder).code == 0
    assert {"a-sharp.PNG", "b-sharp.jpg"} <= set(names(folder))
    assert not any("more" in n and "sharp" in n for n in names(folder))
    # A second time: what the first one made is no input, and nothing is replaced.
    again = photo(folder)
    assert again.code == 0
    assert again.err.count("vs-deblur: exists: ") == 2
    assert "done: 0 of 2 photos" in again.err
    assert not any("sharp-sharp" in n for n in names(folder))
    assert photo(folder, "--overwrite").code == 0


def test_a_run_that_is_repeated_makes_what_is_missing(
    photo: Photo, folder: Path, engine: Engine
) -> None:
    assert photo(folder).code == 0
    (folder / "a-sharp.PNG").write_bytes(b"mine")
    (folder / "c.jpg").write_bytes(jpeg(waves(9, 9, 3)))
    (folder / "d.jpg").write_bytes(b"no picture")
    again = photo(folder)
    assert again.code == 3  # that one is bad as before
    assert "1 of 4 could not be done" in str(again.error)
    assert f"vs-deblur: exists: {folder / 'a-sharp.PNG'}" in again.err.splitlines()
    last = again.err.splitlines()[-1]
    assert last.startswith("done: 1 of 4 photos in ")
    assert last.endswith(" seconds, 2 exist already (--overwrite makes them anew)")
    assert len(engine.seen) == 3
    assert (folder / "a-sharp.PNG").read_bytes() == b"mine"
    (folder / "d.jpg").unlink()
    assert photo(folder).code == 0
    assert photo(folder, "--overwrite").code == 0
    assert inverted(folder / "a-sharp.PNG")
    # One file by its name: it is an error that it is not made.
    assert photo(folder / "a.PNG").code == 2


def test_what_exists_hides_no_other_error(photo: Photo, folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").write_bytes(png(waves(9, 9, 3)))
    arguments = (folder, folder / "gone.png", "-o", tmp_path / "out", "--format", "png")
    assert photo(*arguments).code == 3
    (tmp_path / "out" / "gone.png").write_bytes(b"of another day")
    again = photo(*arguments)
    assert again.code == 3
    assert again.err.count("vs-deblur: exists: ") == 2
    assert "was made from" in again.err
    assert "no such file" in again.err
    itself = photo(folder, "-o", folder)
    assert itself.code == 3
    assert itself.err.count("output is the input") == 3


@pytest.mark.parametrize("elsewhere", [False, True])
def test_outputs_of_an_earlier_run_are_no_inputs(
    photo: Photo, folder: Path, tmp_path: Path, elsewhere: bool
) -> None:
    assert photo(folder).code == 0
    (folder / "lone-sharp.png").write_bytes(png(waves(9, 9, 3)))  # a name like any other
    output = tmp_path / "out" if elsewhere else folder / "out"
    for _ in range(2):  # the second time, outputs may lie below the input
        assert photo(folder, "--recursive", "-o", output, "--overwrite").code == 0
        assert names(output) == ["a.PNG", "b.jpg", "lone-sharp.png", "more/a.png"]


def test_folders_in_folders(photo: Photo, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert photo(folder, "--recursive", "-o", tmp_path / "out").code == 0
    assert names(tmp_path / "out") == ["a.PNG", "b.jpg", "more/a.png"]


def test_a_file_named_twice_is_done_once(photo: Photo, folder: Path, engine: Engine) -> None:
    assert photo(folder / "a.PNG", folder, folder / "a.PNG").code == 0
    assert len(engine.seen) == 2


# ---------------------------------------------------------------------------- what goes wrong


def test_a_bad_file_is_reported_and_the_others_are_done(photo: Photo, folder: Path) -> None:
    (folder / "a1.jpg").write_bytes(b"no picture")
    result = photo(folder)
    assert result.code == 3
    assert isinstance(result.error, InputError)
    assert "1 of 3 could not be done" in str(result.error)
    errors = [line for line in result.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "a1.jpg" in errors[0]
    assert {"a-sharp.PNG", "b-sharp.jpg"} <= set(names(folder))
    assert not any(n.endswith(".part") for n in names(folder))


def test_the_only_file_is_bad(photo: Photo, folder: Path) -> None:
    (folder / "c.jpg").write_bytes(b"no picture")
    result = photo(folder / "c.jpg")
    assert (result.code, result.err) == (3, "")
    assert "not a picture" in str(result.error)
    assert not any(n.endswith(".part") for n in names(folder))
    assert photo(folder / "absent.jpg").code == 3


def test_a_folder_without_pictures(photo: Photo, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = photo(tmp_path / "empty")
    assert result.code == 3
    assert "no pictures in this folder" in str(result.error)
    both = photo(tmp_path / "empty", folder)
    assert both.code == 3
    assert (folder / "a-sharp.PNG").exists()
    for name in ("a.NEF", "b.cr3"):
        (tmp_path / "empty" / name).write_bytes(b"raw")
    result = photo(tmp_path / "empty")
    assert "2 raw files of cameras, which are left out" in str(result.error)


def unreadable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder not be read, as those of other people are not (root may read everything)."""
    read = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        if self == folder:
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)


def test_a_folder_below_that_cannot_be_read(
    photo: Photo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "z").mkdir()
    (folder / "z" / "z.png").write_bytes(png(waves(9, 9, 3)))
    unreadable(folder / "more", monkeypatch)
    result = photo(folder, "--recursive")
    assert result.code == 3
    assert "1 of 4 could not be done" in str(result.error)
    assert f"cannot be read: Permission denied ({folder / 'more'})" in result.err
    assert {"a-sharp.PNG", "b-sharp.jpg", "z/z-sharp.png"} <= set(names(folder))


def test_a_folder_that_cannot_be_read(
    photo: Photo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable(folder, monkeypatch)
    result = photo(folder)
    assert (result.code, result.err) == (3, "")
    assert "cannot be read: Permission denied" in str(result.error)


def test_a_codec_that_fails_at_one_picture(
    photo: Photo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise struct.error("argument out of range")

    monkeypatch.setattr("vs_deblur.photofile.png.write", fail)
    result = photo(folder)
    assert result.code == 3
    assert "1 of 2 could not be done" in str(result.error)
    assert "the picture cannot be written: error: argument out of range" in result.err
    assert str(folder / "a.PNG") in result.err
    assert "b-sharp.jpg" in names(folder)
    assert not any(n.startswith("a-sharp") for n in names(folder))


def test_an_input_is_never_written_over(photo: Photo, folder: Path) -> None:
    before = (folder / "a.PNG").read_bytes()
    for output in (folder / "a.PNG", folder):
        result = photo(folder / "a.PNG", "-o", output, "--overwrite")
        assert (result.code, type(result.error)) == (2, UsageError)
        assert "output is the input" in str(result.error)
    assert (folder / "a.PNG").read_bytes() == before


def test_an_output_that_exists_is_kept(photo: Photo, folder: Path) -> None:
    (folder / "x.png").write_bytes(b"mine")
    result = photo(folder / "a.PNG", "-o", folder / "x.png")
    assert result.code == 2
    assert "output exists" in str(result.error)
    assert (folder / "x.png").read_bytes() == b"mine"
    assert photo(folder / "a.PNG", "-o", folder / "x.png", "--overwrite").code == 0


def test_two_inputs_of_one_output(photo: Photo, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (folder / "b.png").write_bytes(png(waves(9, 9, 3)))
    result = photo(folder, "-o", tmp_path / "out", "--format", "png", "--overwrite")
    assert result.code == 3
    assert "was made from" in result.err
    assert names(tmp_path / "out") == ["a.PNG", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        (["in/a.PNG", "-o", "x.gif"], UsageError, "must end in .jpg, .png, .tif or .webp"),
        (["in/a.PNG", "-o", "x.jpg", "--format", "png"], UsageError, "not one of png"),
        (["in/a.PNG", "in/b.jpg", "-o", "in/notes.txt"], UsageError, "need a folder"),
        (["in/a.PNG", "-o", "x.bmp", "--format", "png"], UsageError, "not one of png"),
        (["in/a.PNG", "-o", "x.nef", "--format", "png"], UsageError, "end it in .png"),
        (["in/a.PNG", "in/b.jpg", "-o", "two.webp"], UsageError, "need a folder"),
        (["in", "-o", "two.webp"], UsageError, "several pictures need a folder"),
        (["in/a.PNG", "in/b.jpg", "-o", "absent/out"], OutputError, "no such folder (absent)"),
        (["in", "-o", "absent/out/"], OutputError, "no such folder (absent)"),
        (["in", "-o", "in/notes.txt/"], OutputError, "cannot make the folder: File exists"),
        (["in/a.PNG", "-o", "absent"], UsageError, "a folder ends in a slash"),
        (["in/a.PNG", "-o", "-"], UsageError, "not written to standard output"),
        (["in", "-o", "-"], UsageError, "not written to standard output"),
        pytest.param(
            *(
                ["in/a.PNG", "-o", "/proc/x.webp"],
                OutputError,
                "no files can be made in this folder",
            ),
            marks=pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc"),
        ),
        (["in/a.PNG", "-o", "absent/x.png"], OutputError, "no such folder"),
        (["in/a.PNG", "-o", "/dev/null", "--format", "png"], OutputError, "not a file"),
    ],
)
def test_where_it_cannot_go(
    photo: Photo,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: type[Exception],
    what: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    result = photo(*arguments)
    assert isinstance(result.error, error)
    assert what in str(result.error)
    assert names(folder) == [".b.jpg", "a.PNG", "b.jpg", "c.nef", "more/a.png", "notes.txt"]
    assert names(folder.parent) == sorted(f"in/{name}" for name in names(folder))


@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg"])
def test_a_full_disk_ends_the_run(photo: Photo, folder: Path, tmp_path: Path, kind: str) -> None:
    # A limit on the size of files is what a test can have of a full disk.
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    (folder / "a.PNG").write_bytes(png(noise))
    (tmp_path / "out").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        result = photo(folder, "-o", tmp_path / "out", "--format", kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (result.code, type(result.error)) == (4, OutputError)
    assert "cannot write: File too large" in str(result.error)
    assert names(tmp_path / "out") == []


def test_when_the_engine_fails_nothing_is_left(photo: Photo, folder: Path, engine: Engine) -> None:
    def fail(_: Any) -> Any:
        raise EngineError("no")

    engine.change = fail
    assert photo(folder).code == 1
    assert not any("sharp" in n for n in names(folder))


def test_what_is_lost_is_said(photo: Photo, folder: Path) -> None:
    (folder / "deep.png").write_bytes(png(waves(9, 9, 3, np.uint16)))
    result = photo(folder / "deep.png", "-o", folder / "x.jpg")
    assert result.code == 0
    assert "warning" in result.err
    assert "not carried over: 16 bits a sample (JPEG holds 8)" in result.err


def test_what_a_format_cannot_hold_is_skipped(photo: Photo, folder: Path) -> None:
    (folder / "clear.png").write_bytes(png(waves(9, 9, 4)))
    result = photo(folder, "--format", "jpeg")
    assert result.code == 3
    assert "JPEG holds no transparency" in result.err
    assert {"a-sharp.jpg", "b-sharp.jpg"} <= set(names(folder))


def test_the_limit_of_pixels(photo: Photo, folder: Path) -> None:
    assert photo(folder / "a.PNG", "--max-pixels", 81).code == 0
    result = photo(folder / "a.PNG", "--max-pixels", 80, "--overwrite")
    assert result.code == 3
    assert "9x9 pixels, 81; 80 are allowed" in str(result.error)


@pytest.mark.parametrize(
    ("size", "limit", "text"),
    [
        ((6000, 4000), 1000, "24 million; 1,000 are allowed"),
        ((6000, 4000), 23_999_999, "24,000,000; 23,999,999 are allowed"),
        ((60000, 60000), 250_000_000, "3,600 million; 250 million are allowed"),
        ((100_000, 100_000), 1_500_000, "10,000 million; 1.5 million are allowed"),
    ],
)
def test_numbers_of_pixels(size: tuple[int, int], limit: int, text: str) -> None:
    with pytest.raises(InputError, match=text):
        check_size(*size, limit)


def test_strength_0_copies_and_needs_no_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, photo: Photo
) -> None:
    monkeypatch.setattr(ModelSettings, "deblurrer", None)
    assert photo(folder, "--strength", 0).code == 0
    for name in ("a", "b"):
        source, target = sorted(folder.glob(f"{name}*"))[::-1]
        assert target.read_bytes() == source.read_bytes()
    assert photo(folder / "b.jpg", "--strength", 0, "-o", folder / "b.png").code == 0
    with Image.open(folder / "b.png") as a, Image.open(folder / "b.jpg") as b:
        assert np.array_equal(np.asarray(a), np.asarray(b))


# ---------------------------------------------------------------------------- progress, signals


def test_a_signal_ends_between_tiles_and_leaves_nothing(
    photo: Photo, folder: Path, engine: Engine
) -> None:
    def interrupted(x: Any) -> Any:
        if len(engine.seen) == 2:
            current_stop().signum = 2
        return x

    class Late(Engine):
        def photo(self, picture: Any, /, *, progress: Any = None) -> Any:
            engine.seen.append(picture)
            interrupted(picture)
            progress(1, 2)
            return picture

    engine.photo = Late().photo  # type: ignore[method-assign]
    result = photo(folder)
    assert isinstance(result.error, Stopped)
    assert result.code == 130
    assert current_stop().frames == 1
    assert "a-sharp.PNG" in names(folder)
    assert not any(n.startswith("b-sharp") for n in names(folder))


def test_tiles_are_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(_progress, "_live", False)
    progress = TileProgress("1/2 a.png", Stop())
    for n in range(1, 6):
        now[0] += 6
        progress(n, 5)
    assert capsys.readouterr().err.splitlines() == [
        "vs-deblur: 1/2 a.png: 40 %",
        "vs-deblur: 1/2 a.png: 80 %",
    ]
