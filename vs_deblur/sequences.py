"""Blurred and sharp frames on disk, to be compared: pair folders and folders of images.

A pair folder holds ``blur/`` and ``sharp/``. Images whose names end in consecutive numbers are
consecutive frames; a gap in the numbers begins a new run, for which a video network must start
afresh. Images without a number in their name are runs of one frame.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vs_deblur.errors import InputError, reason

if TYPE_CHECKING:
    from PIL import ImageFile

IMAGE_SUFFIXES = frozenset((".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm"))

# Pillow's names of what those suffixes are. A file of any other kind under such a name is refused:
# some are programs to be run (EPS).
_FORMATS = ("PNG", "WEBP", "JPEG", "MPO", "BMP", "DIB", "TIFF", "PPM")

_NUMBER = re.compile(r"(\d+)(?=\D*$)")


@dataclass(frozen=True)
class ImagePair:
    """Two files of the same frame."""

    blurred: Path
    sharp: Path


@dataclass(frozen=True)
class ImageSequence:
    """What becomes a row of a table: the pairs of one folder.

    Attributes:
        name: the folder's name.
        runs: consecutive frames each.
    """

    name: str
    runs: tuple[tuple[ImagePair, ...], ...]

    @property
    def frames(self) -> int:
        """Number of pairs."""
        return sum(map(len, self.runs))


def frame_number(name: str) -> tuple[str, int | None, str]:
    """The last number in a file's stem, with the text before and after it.

    >>> frame_number("shot2_000007_blur")
    ('shot2_', 7, '_blur')
    """
    found = _NUMBER.search(name)
    if not found:
        return name, None, ""
    return name[: found.start()], int(found.group()), name[found.end() :]


def _order(path: Path) -> tuple[str, str, int, str]:
    before, number, after = frame_number(path.stem)
    return before, after, -1 if number is None else number, path.name


def images(folder: Path) -> list[Path]:
    """The images directly in a folder, in the order of their numbers; hidden ones left out.

    Raises:
        InputError: not a folder that can be read.
    """
    try:
        inside = list(folder.iterdir())
    except OSError as error:
        raise InputError(f"no such folder: {reason(error)}", str(folder)) from error
    return sorted(
        (p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")),
        key=_order,
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _key_by_number(paths: Sequence[Path]) -> dict[object, Path]:
    return {frame_number(p.stem)[1]: p for p in paths}


def _without_partner(blurred: Sequence[Path], sharp: Sequence[Path]) -> str:
    """The first image whose name the other side lacks, or whose number where no names agree."""
    ours: dict[object, Path] = {p.stem: p for p in blurred}
    theirs: dict[object, Path] = {p.stem: p for p in sharp}
    if ours.keys().isdisjoint(theirs):
        ours, theirs = _key_by_number(blurred), _key_by_number(sharp)
    for mine, others, other in ((ours, theirs, "sharp"), (theirs, ours, "blurred")):
        for key, path in mine.items():
            if key not in others:
                return f"{path.name} has no {other} counterpart"
    return "two have the same name"


def match(blurred: Sequence[Path], sharp: Sequence[Path], where: str) -> list[ImagePair]:
    """Pair images by their names, or by the numbers in them where the names differ.

    Raises:
        InputError: different counts, or an image without a counterpart.
    """
    if len(blurred) != len(sharp):
        raise InputError(
            f"{len(blurred)} blurred but {len(sharp)} sharp images: "
            + _without_partner(blurred, sharp),
            where,
            "each blurred frame needs the sharp frame of the same name",
        )
    theirs: dict[object, Path] = {p.stem: p for p in sharp}
    ours: dict[object, Path] = {p.stem: p for p in blurred}
    if ours.keys() != theirs.keys():
        by_number = _key_by_number(blurred), _key_by_number(sharp)
        if by_number[0].keys() == by_number[1].keys() and len(by_number[0]) == len(blurred):
            ours, theirs = by_number
    if len(ours) != len(blurred):
        raise InputError("two images of the same name", where)
    for key, path in ours.items():
        if key not in theirs:
            raise InputError(f"{path.name} has no sharp counterpart", where)
    return [ImagePair(path, theirs[key]) for key, path in ours.items()]


def split_runs(pairs: Sequence[ImagePair]) -> tuple[tuple[ImagePair, ...], ...]:
    """Cut pairs, in order, wherever the numbers of the blurred images do not go on by one."""
    runs: list[list[ImagePair]] = []
    last: tuple[str, int | None, str] | None = None
    for pair in pairs:
        this = frame_number(pair.blurred.stem)
        follows = (
            last is not None
            and this[1] is not None
            and last[1] is not None
            and (last[0], last[1] + 1, last[2]) == this
        )
        if not follows:
            runs.append([])
        runs[-1].append(pair)
        last = this
    return tuple(map(tuple, runs))


def _sequence(name: str, blurred: Path, sharp: Path) -> ImageSequence:
    pairs = match(images(blurred), images(sharp), f"{blurred} and {sharp}")
    if not pairs:
        raise InputError("no images", str(blurred), f"known: {' '.join(sorted(IMAGE_SUFFIXES))}")
    return ImageSequence(name, split_runs(pairs))


def _is_pair_folder(folder: Path) -> bool:
    return (folder / "blur").is_dir() and (folder / "sharp").is_dir()


def pair_folders(folder: Path) -> list[ImageSequence]:
    """Sequences of a folder that is a pair folder or holds some.

    Raises:
        InputError: no such folder, no pair folder in it, or images without counterparts.
    """
    images(folder)  # says what is wrong with the folder itself
    if _is_pair_folder(folder):
        return [_sequence(folder.resolve().name, folder / "blur", folder / "sharp")]
    found = [f for f in _folders(folder) if _is_pair_folder(f)]
    if not found:
        raise InputError(
            "no blur/ and sharp/ in it, nor in the folders in it",
            str(folder),
            "give two folders: BLURRED SHARP",
        )
    return [_sequence(f.name, f / "blur", f / "sharp") for f in found]


def two_folders(blurred: Path, sharp: Path) -> list[ImageSequence]:
    """Sequences of a folder of blurred and one of sharp images, or of folders of them.

    Raises:
        InputError: no such folder, nothing in it, or images or folders without counterparts.
    """
    ours, theirs = images(blurred), images(sharp)
    if ours or theirs:
        return [_sequence(blurred.resolve().name, blurred, sharp)]
    names = [f.name for f in _folders(blurred)]
    others = [f.name for f in _folders(sharp)]
    if names != others:
        mine = next((f"{n} has no sharp counterpart" for n in names if n not in others), None)
        what = mine or next(f"{n} has no blurred counterpart" for n in others if n not in names)
        if len(names) != len(others):
            what = f"{len(names)} blurred but {len(others)} sharp sequences: {what}"
        raise InputError(what, f"{blurred} and {sharp}")
    if not names:
        raise InputError("no images", str(blurred), f"known: {' '.join(sorted(IMAGE_SUFFIXES))}")
    return [_sequence(n, blurred / n, sharp / n) for n in names]


@dataclass(frozen=True)
class Header:
    """What an image file says before its samples are decoded.

    Attributes:
        size: width and height as seen, after its EXIF orientation.
        is_deep: whether it has more than 8 bits a sample.
        is_animated: whether it is a film: APNG, animated WebP.
    """

    size: tuple[int, int]
    is_deep: bool
    is_animated: bool


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image file, without what Pillow says about it on stderr."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=_FORMATS) as image:
            yield image


def header(path: Path) -> Header | None:
    """The header of an image; None where there is none to read, which reading it will explain."""
    try:
        with _opened(path) as image:
            width, height = image.size
            # Pillow decodes a whole PNG to look for EXIF behind its samples.
            turned = image.format != "PNG" and image.getexif().get(0x0112, 1) in range(5, 9)
            size = (height, width) if turned else (width, height)
            animated = image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False)
            return Header(size, _is_deep(image), animated)
    except Exception:  # strangers' bytes: whatever Pillow makes of them
        return None


def _is_deep(image: ImageFile.ImageFile) -> bool:
    # Pillow would cut 16-bit RGB down to 8 without a word; the raw mode tells.
    raw_modes = [str(t.args[0] if isinstance(t.args, tuple) else t.args) for t in image.tile]
    return any(";16" in m for m in raw_modes) or image.mode[0] in "IF"


def sizes_differ(sequence: ImageSequence) -> bool:
    """Whether the blurred images of a sequence are not all of one size, by their headers."""
    found = (header(pair.blurred) for run in sequence.runs for pair in run)
    sizes = (h.size for h in found if h is not None)
    first = next(sizes, None)
    return any(size != first for size in sizes)


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8, turned upright by its EXIF orientation.

    Raises:
        InputError: it cannot be read, has more than 8 bits, or is partly transparent.
    """
    from PIL import ImageOps

    try:
        with _opened(path) as image:
            if _is_deep(image):
                raise InputError("more than 8 bits a sample", str(path), "convert it to 8 bits")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                rgba = np.asarray(upright.convert("RGBA"))
                if (rgba[..., 3] != 255).any():
                    raise InputError("a partly transparent image has no one value", str(path))
            return np.array(upright.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # strangers' bytes: whatever Pillow makes of them
        text = " ".join(str(error).split())
        raise InputError(f"the image cannot be read: {text}", str(path)) from error


def read_pairs(
    run: Sequence[ImagePair],
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """The frames of a run, blurred and sharp, (H, W, 3) uint8.

    Raises:
        InputError: an image that cannot be read, or blurred and sharp of different sizes.
    """
    for pair in run:
        blurred, sharp = read_image(pair.blurred), read_image(pair.sharp)
        if blurred.shape != sharp.shape:
            raise InputError(
                f"blurred is {blurred.shape[1]}x{blurred.shape[0]}, "
                f"sharp {sharp.shape[1]}x{sharp.shape[0]}",
                str(pair.blurred),
            )
        yield blurred, sharp
