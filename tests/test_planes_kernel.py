"""The kernels of planes.cu on the CPU (``tests/shim``), against float64 and VapourSynth.

The rule for results that are not integers: the error against float64 is at most twice that of plain
torch at the same precision. Integers are the nearest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.exact_planes import (
    LOCATIONS,
    MATRICES,
    black,
    exact_rgb,
    exact_sum,
    random_planes,
    tensors,
    vs_planes,
    vs_rgb,
)
from tests.kernels_support import ARCHITECTURES, assert_as_good, assert_compiles
from tests.shim import Shim
from vs_deblur_kernels import planes, reference
from vs_deblur_kernels._compile import Backend, CupyBackend
from vs_deblur_kernels.dispatch import launching_by
from vs_deblur_kernels.pixels import ChromaFilter, PixelFormat

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Case:
    """A form of the kernels, and what of formats it is tried with."""

    fmt: PixelFormat
    dtype: torch.dtype = torch.float32
    chroma: ChromaFilter = "bilinear"
    frames: int = 1
    bits: tuple[int, ...] = ()

    def formats(self) -> Iterator[PixelFormat]:
        """Every siting, matrix and depth, and both ranges; not all of each with all."""
        for n in range(6):
            yield dataclasses.replace(
                self.fmt,
                bits=self.bits[n % len(self.bits)] if self.bits else self.fmt.bits,
                matrix=MATRICES[n % len(MATRICES)],
                full_range=n % 4 < 2,
                chroma_location=LOCATIONS[n],
            )


def yuv(bits: int, subsampling: tuple[int, int], is_float: bool = False) -> PixelFormat:
    return PixelFormat("yuv", bits, is_float, subsampling)


HALF, BRAIN = torch.float16, torch.bfloat16
CASES = {
    "420 8": Case(yuv(8, (1, 1))),
    "420 8 cubic": Case(yuv(8, (1, 1)), HALF, "bicubic", 3),
    "420 16 cubic": Case(yuv(16, (1, 1)), chroma="bicubic", bits=(16, 10, 9)),
    "420 half": Case(yuv(16, (1, 1), True), HALF),
    "420 float cubic": Case(yuv(32, (1, 1), True), chroma="bicubic", frames=3),
    "422 8 cubic": Case(yuv(8, (1, 0)), BRAIN, "bicubic"),
    "422 16": Case(yuv(16, (1, 0)), frames=3, bits=(12, 16, 14)),
    "440 8": Case(yuv(8, (0, 1)), HALF),
    "444 8": Case(yuv(8, (0, 0)), HALF, frames=7),
    "444 16": Case(yuv(16, (0, 0)), bits=(10, 16, 15)),
    "444 float": Case(yuv(32, (0, 0), True), BRAIN),
    "rgb 8": Case(PixelFormat("rgb", 8), HALF),
    "rgb half": Case(PixelFormat("rgb", 16, True), HALF, frames=3),
    "rgb float": Case(PixelFormat("rgb", 32, True), frames=7),
    "gray 8": Case(PixelFormat("gray", 8), HALF, frames=3),
    "gray 16": Case(PixelFormat("gray", 16), BRAIN, bits=(16, 11, 13)),
}
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
OF_FLOATS = pytest.mark.parametrize(
    "case", [pytest.param(c, id=n) for n, c in CASES.items() if c.fmt.is_float]
)

# Height and width, and those of the result: one pixel, whole and ragged blocks and tiles.
SIZES = [
    ((1, 1), (1, 1)),
    ((2, 3), (4, 8)),
    ((19, 37), (20, 40)),
    ((3, 129), (4, 129)),
    ((33, 5), (36, 12)),
    ((16, 64), (16, 64)),
]
Run = tuple[PixelFormat, tuple[int, int], tuple[int, int], int]


def runs(case: Case) -> Iterator[Run]:
    """Format, size, padded size and seed."""
    for seed, (fmt, (size, padded)) in enumerate(zip(case.formats(), SIZES, strict=True)):
        yield fmt, size, padded, seed


def window(case: Case, run: Run) -> list[list[np.ndarray[Any, Any]]]:
    """Planes of each frame of a window."""
    fmt, size, _, seed = run
    return [random_planes(fmt, *size, 10 * seed + n) for n in range(case.frames)]


def on(device: torch.device, frames: list[list[np.ndarray[Any, Any]]]) -> list[Tensor]:
    return [planes.pack(tensors(frame)).to(device) for frame in frames]


def result(run: Run) -> Tensor:
    """What a network might have given: beyond 0..1 too, in one memory format or the other."""
    _, _, padded, seed = run
    sharp = torch.rand((1, 3, *padded), generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
    layout = torch.channels_last if seed % 2 else torch.contiguous_format
    return sharp.contiguous(memory_format=layout)


Maker = Callable[[int], Backend]


def check_stack(case: Case, make: Maker, device: torch.device = CPU) -> None:
    found, plain, exact = [], [], []
    for run in runs(case):
        fmt, (height, width), padded, seed = run
        frames = window(case, run)
        seen, flags = planes.launch_stack(
            *(make(seed), on(device, frames), fmt, height, width, padded, case.dtype, case.chroma)
        )
        assert seen.shape == (1, 3 * case.frames, *padded)
        assert seen.is_contiguous(memory_format=torch.channels_last)
        assert flags.tolist() == [0] * case.frames
        found.append(seen.cpu().flatten())
        rgb = [reference.to_rgb(tensors(f), fmt, case.chroma)[0] for f in frames]
        plain.append(reference.pad_to(torch.cat(rgb, 1), *padded).to(case.dtype).flatten())
        around = [(0, 0), (0, padded[0] - height), (0, padded[1] - width)]
        true = [exact_rgb(f, fmt, case.chroma).clip(0, 1) for f in frames]
        exact.append(torch.from_numpy(np.pad(np.concatenate(true), around, "edge")).flatten())
    assert_as_good(torch.cat(found), torch.cat(plain), torch.cat(exact))


def check_add(case: Case, make: Maker, see: Maker, device: torch.device = CPU) -> None:
    found, plain, exact = [], [], []
    for run in runs(case):
        fmt, size, padded, seed = run
        strength = (1.0, 0.7)[seed % 2]
        own = window(case, run)[0]
        frame, sharp = on(device, [own])[0], result(run)
        common = (fmt, *size)
        # Exactly what the other kernel gave is what the change is from.
        seen, _ = planes.launch_stack(
            *(see(seed), [frame], *common, padded, case.dtype, case.chroma)
        )
        after, flag = planes.launch_add(
            *(make(seed), frame, *common, sharp.to(device), strength, case.dtype, case.chroma)
        )
        assert flag.tolist() == [0]
        assert after.shape == frame.shape
        assert after.dtype == frame.dtype
        inner = (..., slice(size[0]), slice(size[1]))
        change = (sharp.clamp(0, 1) - seen.cpu().float())[inner] * strength
        if not fmt.is_float:
            difference = (sharp.double().clamp(0, 1) - seen.cpu().double())[inner] * strength
            wanted = exact_sum(own, fmt, difference[0].numpy(), case.chroma)
            values = np.concatenate([w.ravel() for w in wanted]).clip(0, fmt.peak)
            off = np.abs(after.cpu().numpy() - values)
            # The nearest code value; float32 may decide a tie at 16 bits otherwise.
            assert off.max() <= 0.5 + 0.02 * 2.0 ** (fmt.bits - 16), run
            continue
        wanted = exact_sum(own, fmt, change[0].double().numpy(), case.chroma)
        found.append(after.cpu())
        plain.append(planes.pack(reference.add_rgb(tensors(own), fmt, change, case.chroma)))
        exact.append(planes.pack([torch.from_numpy(w) for w in wanted]))
    if found:
        assert_as_good(torch.cat(found), torch.cat(plain), torch.cat(exact))


def by_shim(folder: Path, changes: tuple[tuple[str, str], ...] = (), more: int = 0) -> Maker:
    return lambda seed: Shim(folder, seed + more, changes)


@ALL
def test_stack(compiled: Path, case: Case) -> None:
    check_stack(case, by_shim(compiled))


@ALL
def test_add(compiled: Path, case: Case) -> None:
    check_add(case, by_shim(compiled), by_shim(compiled))


@ALL
def test_what_was_seen_changes_nothing(compiled: Path, case: Case) -> None:
    """Not a bit: both kernels see the same, rounded in the same way."""
    for run in runs(case):
        fmt, size, padded, seed = run
        frame = on(CPU, window(case, run)[:1])[0]
        seen, _ = planes.launch_stack(
            *(Shim(compiled, seed), [frame], fmt, *size, padded, case.dtype, case.chroma)
        )
        after, _ = planes.launch_add(
            *(Shim(compiled, seed), frame, fmt, *size, seen.float(), 1.0, case.dtype, case.chroma)
        )
        assert torch.equal(after, frame)


@pytest.mark.gpu
@ALL
def test_on_a_device(case: Case) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    backend = CupyBackend()
    make, device = (lambda seed: backend), torch.device("cuda", 0)
    check_stack(case, make, device)
    check_add(case, make, make, device)


# ---------------------------------------------------------------------------- against VapourSynth

OF_VS = [n for n, c in CASES.items() if c.fmt.family == "yuv" and not c.fmt.is_float]


@pytest.mark.parametrize("name", OF_VS)
def test_vapoursynth_sees_the_same(compiled: Path, name: str) -> None:
    """Within a fiftieth of a code value, of the format's own depth, and what the type rounds."""
    case = CASES[name]
    for seed, fmt in enumerate(case.formats()):
        if fmt.bits in (11, 13, 15):  # VapourSynth has them, but no name for them
            continue
        frames = [random_planes(fmt, 24, 32, seed + n) for n in range(case.frames)]
        seen, _ = planes.launch_stack(
            *(Shim(compiled, seed), on(CPU, frames), fmt, 24, 32, (24, 32), case.dtype),
            case.chroma,
        )
        theirs = np.concatenate([vs_rgb(f, fmt, case.chroma) for f in frames])
        tolerance = 0.02 / fmt.peak + torch.finfo(case.dtype).eps / 4
        np.testing.assert_allclose(seen[0].double().numpy(), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OF_VS)
def test_a_change_of_black_is_what_vapoursynth_makes_of_the_picture(
    compiled: Path, name: str
) -> None:
    """The same code values; one in twenty may be the other side of a tie, at 8 bits none."""
    case = CASES[name]
    for seed, fmt in enumerate(case.formats()):
        if fmt.bits in (11, 13, 15):
            continue
        rgb = np.random.default_rng(seed).uniform(0, 1, (3, 24, 32)).astype(np.float32)
        frame, sharp = on(CPU, [black(fmt, 24, 32)])[0], torch.from_numpy(rgb)[None]
        after, _ = planes.launch_add(
            *(Shim(compiled, seed), frame, fmt, 24, 32, sharp, 1.0, case.dtype, case.chroma)
        )
        theirs = np.concatenate([p.ravel() for p in vs_planes(rgb, fmt, case.chroma)])
        off = np.abs(after.numpy() - theirs)
        assert off.max() <= (0 if fmt.bits == 8 else 1)
        assert np.count_nonzero(off) <= off.size / 20


# ----------------------------------------------------------------------- values that are not finite


@OF_FLOATS
def test_samples_that_are_not_finite(compiled: Path, case: Case) -> None:
    """They count as 0 or 1, and their frame is named."""
    for run in runs(case):
        fmt, size, padded, seed = run
        rng = np.random.default_rng(seed)
        frames = on(CPU, window(case, run))
        mended = [f.clone() for f in frames]
        bad = int(rng.integers(case.frames))
        values = ((math.nan, 0.0), (math.inf, 1.0), (-math.inf, 0.0))
        for value, instead in values[: 1 + seed % 3]:
            at = int(rng.integers(frames[bad].numel()))
            frames[bad][at], mended[bad][at] = value, instead
        common = (fmt, *size)
        shim = Shim(compiled, seed)
        seen, flags = planes.launch_stack(shim, frames, *common, padded, case.dtype, case.chroma)
        expected, none = planes.launch_stack(shim, mended, *common, padded, case.dtype, case.chroma)
        assert torch.equal(seen, expected)
        assert flags.tolist() == [int(n == bad) for n in range(case.frames)]
        assert not none.any()
        sharp = result(run)
        after, _ = planes.launch_add(
            *(shim, frames[bad], *common, sharp, 1.0, case.dtype, case.chroma)
        )
        expected, _ = planes.launch_add(
            *(shim, mended[bad], *common, sharp, 1.0, case.dtype, case.chroma)
        )
        assert torch.isfinite(after).all()
        assert torch.equal(after, expected)


@pytest.mark.parametrize("name", ["420 8", "rgb float"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_results_that_are_not_finite(compiled: Path, name: str, value: float) -> None:
    """Told by the flag where the frame is; not where only the padding is."""
    case = CASES[name]
    frame = on(CPU, [random_planes(case.fmt, 18, 33, 0)])[0]
    for y, x, flag in ((0, 0, 1), (17, 32, 1), (5, 31, 1), (18, 3, 0), (3, 33, 0)):
        sharp = torch.full((1, 3, 20, 36), 0.4)
        sharp[0, 1, y, x] = value
        after, found = planes.launch_add(
            *(Shim(compiled, x), frame, case.fmt, 18, 33, sharp, 1.0, case.dtype, case.chroma)
        )
        assert found.tolist() == [flag]
        assert torch.isfinite(after.float()).all()


# ----------------------------------------------------------------------------------- the launcher


def arguments(fmt: PixelFormat, frames: int = 1) -> tuple[list[Tensor], Tensor]:
    """Frames of 9 x 11 pixels, and a result."""
    sharp = torch.rand((1, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    return on(CPU, [random_planes(fmt, 9, 11, n) for n in range(frames)]), sharp


def both(case: Case) -> tuple[Tensor, ...]:
    """What both functions give, all as float."""
    fmt, (own, sharp) = case.fmt, arguments(case.fmt, case.frames)
    seen = planes.stack(own, fmt, 9, 11, (12, 12), case.dtype, case.chroma)
    after = planes.add(own[0], fmt, 9, 11, sharp, 0.8, case.dtype, case.chroma)
    return tuple(t.float() for t in (*seen, *after))


@pytest.mark.parametrize("name", ["420 8", "420 16 cubic", "420 half", "420 float cubic"])
def test_the_kernels_prove_themselves_and_run(
    compiled: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planes.operation, "found", {})
    case = CASES[name]
    shim = Shim(compiled)
    expected = both(case)
    with launching_by(shim):
        found = both(case)
    assert list(planes.operation.found.values()) == [None]
    # Both types that networks see are checked; then comes what was asked.
    assert [k.entry for k in shim.launches] == ["stack", "add"] * 3
    eps = 1e-3 if case.dtype == HALF else 2e-6
    after = 4 * eps if case.fmt.is_float else 1
    for ours, theirs, tolerance in zip(found, expected, (eps, 0, after, 0), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_a_kernel_that_is_wrong_is_left_out(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(planes.operation, "found", {})
    wrong = ("(change[0] - luma) * format->v_of_difference", "change[0] - luma")
    expected = both(CASES["420 8"])
    with launching_by(Shim(compiled, 0, [wrong])):
        found = both(CASES["420 8"])
    assert "the kernel planes is left out" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("subsampling", [(2, 0), (2, 2)])
def test_quartered_chroma_is_left_to_torch(compiled: Path, subsampling: tuple[int, int]) -> None:
    case = Case(yuv(8, subsampling), chroma="bicubic")
    shim = Shim(compiled)
    with launching_by(shim):
        seen, _, after, _ = both(case)
    assert not shim.launches
    (frame,), sharp = arguments(case.fmt)
    own = planes.unpack(frame, case.fmt, 9, 11)
    rgb, _ = reference.to_rgb(own, case.fmt, "bicubic")
    assert torch.equal(seen, reference.pad_to(rgb, 12, 12))
    change = (sharp[..., :9, :11] - rgb) * 0.8
    wanted = planes.pack(reference.add_rgb(own, case.fmt, change, "bicubic"))
    torch.testing.assert_close(after, wanted.float(), rtol=0, atol=1)


def test_more_frames_than_the_kernel_takes(compiled: Path) -> None:
    fmt = PixelFormat("gray")
    own, _ = arguments(fmt, 8)
    shim = Shim(compiled)
    with launching_by(shim):
        seen, flags = planes.stack(own, fmt, 9, 11, (12, 12), torch.float32)
    assert not shim.launches
    assert seen.shape == (1, 24, 12, 12)
    assert flags.tolist() == [0] * 8


def test_without_kernels_torch_tells_of_bad_values_too() -> None:
    fmt = yuv(32, (1, 1), True)
    own, sharp = arguments(fmt, 3)
    own[1][150] = math.nan
    sharp[0, 2, 8, 10] = -math.inf
    seen, flags = planes.stack(own, fmt, 9, 11, (12, 12), BRAIN)
    after, flag = planes.add(own[1], fmt, 9, 11, sharp, 1.0, BRAIN)
    assert seen.dtype == BRAIN
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert flags.tolist() == [0, 1, 0]
    assert flag.tolist() == [1]
    assert torch.isfinite(seen).all()
    assert torch.isfinite(after).all()


def test_a_part_of_a_larger_result(compiled: Path) -> None:
    """Which is not dense, and of another type."""
    fmt = yuv(8, (1, 1))
    own, sharp = arguments(fmt)
    whole = torch.zeros((1, 3, 20, 20), dtype=torch.bfloat16)
    part = whole[..., 3:15, 5:17]
    part.copy_(sharp)
    expected, _ = planes.add(own[0], fmt, 9, 11, part, 1.0, torch.float32)
    for sharp in (part, part.float(), whole.float()[..., 3:15, 5:17]):
        found, _ = planes.launch_add(
            Shim(compiled), own[0], fmt, 9, 11, sharp.float(), 1.0, torch.float32
        )
        assert (found.int() - expected.int()).abs().max() <= 1


def test_planes_are_packed_and_unpacked() -> None:
    fmt = yuv(10, (1, 1))
    own = tensors(random_planes(fmt, 5, 7, 0))
    frame = planes.pack(own)
    again = planes.unpack(frame, fmt, 5, 7)
    assert frame.shape == (5 * 7 + 2 * 3 * 4,)
    assert all(torch.equal(a, b) for a, b in zip(again, own, strict=True))
    assert again[0].data_ptr() == frame.data_ptr()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": []}, "at least one pixel"),
        ({"height": 0}, "at least one pixel"),
        ({"height": 8}, r"must be 136 numbers of type torch.uint8, not \(159,\)"),
        ({"frames": [torch.zeros(159)]}, "of type torch.uint8, not .* of torch.float32"),
        ({"padded": (8, 12)}, "less than the frames'"),
        ({"dtype": torch.float64}, "float32, float16 or bfloat16, not torch.float64"),
        ({"chroma": "lanczos"}, "must be bilinear or bicubic, not 'lanczos'"),
    ],
)
def test_stack_refuses(wrong: dict[str, Any], message: str) -> None:
    fmt = yuv(8, (1, 1))
    given: dict[str, Any] = {
        "frames": arguments(fmt)[0],
        "fmt": fmt,
        "height": 9,
        "width": 11,
        "padded": (12, 12),
        "dtype": torch.float32,
    }
    with pytest.raises(ValueError, match=message):
        planes.stack(**{**given, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sharp": torch.zeros(1, 3, 8, 12)}, "9 or more, 11 or more"),
        ({"sharp": torch.zeros(3, 9, 11)}, "9 or more, 11 or more"),
        ({"sharp": torch.zeros(1, 3, 9, 11, device="meta")}, "on cpu, sharp on meta"),
        ({"frame": torch.zeros(158, dtype=torch.uint8)}, "must be 159 numbers"),
        ({"dtype": torch.int32}, "not torch.int32"),
        ({"chroma": "lanczos"}, "not 'lanczos'"),
    ],
)
def test_add_refuses(wrong: dict[str, Any], message: str) -> None:
    fmt = yuv(8, (1, 1))
    own, sharp = arguments(fmt)
    given: dict[str, Any] = {
        "frame": own[0],
        "fmt": fmt,
        "height": 9,
        "width": 11,
        "sharp": sharp,
        "strength": 1.0,
        "dtype": torch.float32,
    }
    with pytest.raises(ValueError, match=message):
        planes.add(**{**given, **wrong})


# -------------------------------------------------------------------------------------- mutations

# A fault, what is checked (stack or add), the case, the text and what replaces it.
MUTATIONS: dict[str, tuple[str, str, str, str]] = {
    "stack without its barrier": (
        "stack",
        "gray 8",
        "__syncthreads();  // all values of the block are gathered",
        "",
    ),
    "stack without the last values": (
        "stack",
        "gray 8",
        "for (int j = i; j < count; ++j) to[j] = gathered[j];",
        ";",
    ),
    "stack without a bound on vectors": (
        "stack",
        "gray 8",
        "if (i + VALUES <= count)",
        "if (true)",
    ),
    "stack without a bound on the block": (
        "stack",
        "gray 8",
        "min(padded_height * padded_width - int(first), THREADS)",
        "THREADS",
    ),
    "stack without a bound on rows": (
        "stack",
        "gray 8",
        "min(int(pixel / padded_width), height - 1)",
        "int(pixel / padded_width)",
    ),
    "stack without a bound on columns": (
        "stack",
        "gray 8",
        "min(int(pixel % padded_width), width - 1)",
        "int(pixel % padded_width)",
    ),
    "stack of one frame only": ("stack", "gray 8", "see(frames[n],", "see(frames[0],"),
    "nothing clamped": ("stack", "gray 8", "rgb[c] = clamped(rgb[c]);", ";"),
    "ends that are clamped, not mirrored": ("stack", "422 8 cubic", "if (i < 0) i = -1 - i;", ""),
    "no mirror at the far end": (
        "stack",
        "422 8 cubic",
        "if (i >= count) i = 2 * count - 1 - i;",
        "",
    ),
    "a mirror without an end": ("add", "422 8 cubic", "return max(i, 0);", "return i;"),
    "chroma planes rounded down": (
        "stack",
        "422 8 cubic",
        "return (width + SUB_X) >> SUB_X;",
        "return width >> SUB_X;",
    ),
    "no flag for samples": ("bad", "rgb float", "if (bad) flags[n] = 1;", ""),
    "a flag for another frame": ("bad", "rgb float", "flags[n] = 1", "flags[0] = 1"),
    "samples that stay infinite": ("bad", "rgb float", "return x > 0.f ? 1.f : 0.f;", "return x;"),
    "add without its barrier": (
        "add",
        "420 8",
        "__syncthreads();  // all changes of the tile are there",
        "",
    ),
    "add without a bound on chroma rows": ("add", "420 8", "y >= size.chroma_height() || ", ""),
    "add without a bound on chroma columns": ("add", "420 8", " || x >= size.chroma_width()", ""),
    "add without a ring around the tile": (
        "add",
        "420 8",
        "BEFORE_X = SUB_X * (TAPS - 1)",
        "BEFORE_X = 0",
    ),
    "add with too small an area": (
        "add",
        "420 8",
        "AREA_Y = TILE_Y + HALVING_Y - 1 - SUB_Y",
        "AREA_Y = TILE_Y + HALVING_Y - 3 - SUB_Y",
    ),
    "add without a clamp to the depth": ("add", "444 16", "fminf(sum, peak)", "sum"),
    "add of a result that is not clamped": ("add", "444 16", "clamped(value)", "value"),
    "add without strength": ("add", "444 16", ") * strength;", ");"),
    "add to what was not rounded": (
        "add",
        "444 8",
        "to_float(rounded(change[c]))",
        "change[c]",
    ),
    "no flag for results": ("flag", "444 16", "bad |= !is_finite(value);", ""),
}


def check(what: str, case: Case, make: Maker, right: Maker) -> None:
    """Raises AssertionError where a kernel is wrong that `make` launches, not `right`."""
    if what == "stack":
        check_stack(case, make)
    elif what == "add":
        check_add(case, make, right)
    elif what == "bad":
        frames = torch.rand(case.frames, 3 * 5 * 7)
        frames[3, 40] = math.inf
        frames[5, 1] = math.nan
        seen, flags = planes.launch_stack(make(0), list(frames), case.fmt, 5, 7, (5, 7), case.dtype)
        assert flags.tolist() == [int(n in (3, 5)) for n in range(case.frames)]
        assert seen[0, 9:12].flatten()[40] == 1
        # NaN is 0 by the clamp alone.
        after, _ = planes.launch_add(
            make(0), frames[3].clone(), case.fmt, 5, 7, seen[:, 9:12], 1.0, case.dtype
        )
        assert torch.isfinite(after).all()
    else:
        sharp = torch.full((1, 3, 5, 7), math.nan)
        frame = on(CPU, [random_planes(case.fmt, 5, 7, 0)])[0]
        _, flag = planes.launch_add(make(0), frame, case.fmt, 5, 7, sharp, 1.0, case.dtype)
        assert flag.tolist() == [1]


def is_wrong(what: str, case: Case, make: Maker, right: Maker) -> bool:
    try:
        check(what, case, make, right)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    ("what", "name"), sorted({(what, name) for what, name, _, _ in MUTATIONS.values()})
)
def test_what_mutations_are_told_from(compiled: Path, what: str, name: str) -> None:
    for more in range(4):
        check(what, CASES[name], by_shim(compiled, more=more), by_shim(compiled))


@pytest.mark.parametrize("fault", MUTATIONS)
def test_a_fault_is_found(compiled: Path, fault: str) -> None:
    """A kernel with a part taken out fails for some order of threads."""
    what, name, old, new = MUTATIONS[fault]
    case, changes = CASES[name], ((old, new),)
    # The text is there, and what is left of it compiles.
    shim = Shim(compiled, 0, changes)
    for kernel in (
        planes.stack_kernel(case.fmt, case.dtype, case.frames, case.chroma),
        planes.add_kernel(case.fmt, case.dtype, case.chroma),
    ):
        if (kernel.entry == "stack") == (what in ("stack", "bad")):
            shim.library(kernel)
    assert any(
        is_wrong(what, case, by_shim(compiled, changes, more), by_shim(compiled))
        for more in range(4)
    )


# ------------------------------------------------------------------------------------------ NVRTC


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles(architecture: str) -> None:
    """One of each kind; the largest window."""
    for name in ("420 8 cubic", "422 16", "444 float", "rgb half"):
        case = CASES[name]
        assert_compiles(planes.stack_kernel(case.fmt, case.dtype, 7, case.chroma), architecture)
        assert_compiles(planes.add_kernel(case.fmt, case.dtype, case.chroma), architecture)
