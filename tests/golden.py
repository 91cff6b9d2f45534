"""Golden figures of every network in float32 on the CPU: what each frame came to, and how exactly.

    python -m tests.golden --write     writes tests/golden.json, after weights or networks changed
    python -m tests.golden --spread    how far settings of one processor lie apart, as a table

Input and weights that are not shipped are made by integer arithmetic, the same everywhere. For
each frame the file has a checksum of the exact result, which holds for one kind of processor and
one version of torch (:class:`Kind`), and means and samples that hold everywhere within
:data:`TOLERANCE`. It names the shipped weights that it belongs to by their SHA-256.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from tests.small import SMALL_LITE
from vs_deblur.engine import Deblurrer
from vs_deblur.timeline import Plan
from vs_deblur.weights import load, shipped
from vs_deblur_kernels.pixels import PixelFormat
from vs_deblur_models.registry import build_network
from vs_deblur_models.spec import NetworkSpec, State, step_of

FILE = Path(__file__).with_name("golden.json")
TOLERANCE = {"shipped": 2e-6, "made": 1e-4, "engine": 4e-5}
"""Of means and samples, relative to the largest value of a frame (at least 1). Ten to
twenty times the largest difference that --spread shows (docs/reliability.md), for the engine two
codes of 16 bits and a half. Weights that are not trained let rounding grow from frame to frame.
"""

Frames = NDArray[np.float32]  # (n, channels, H, W)
CUT = 3  # the frame of a clip that begins a second scene

# ----------------------------------------------------------------------------- what is computed


@dataclass(frozen=True)
class Case:
    """One network with its weights.

    Attributes:
        network: name in the registry, or of a shipped model.
        config: hyper-parameters of a network whose weights are made here; None for shipped ones.
        frames: how many.
        size: height and width.
        gain: of the weights made here; below 1 where sums of many blocks would grow.
        through_engine: 16-bit YUV 4:2:0 through the engine, instead of the network by itself.
    """

    network: str
    config: Mapping[str, Any] | None = field(default_factory=dict)
    frames: int = 5
    size: tuple[int, int] = (64, 96)
    gain: float = 1.0
    through_engine: bool = False

    @property
    def name(self) -> str:
        """Tells it from the others."""
        words = [self.network]
        if self.config is None:
            words.append("shipped")
        elif self.config:
            words += [f"{k}={v}".replace(" ", "") for k, v in self.config.items()]
        return " ".join([*words, "engine"] if self.through_engine else words)

    @property
    def kind(self) -> str:
        """A key of :data:`TOLERANCE`."""
        if self.through_engine:
            return "engine"
        return "shipped" if self.config is None else "made"

    @property
    def tolerance(self) -> float:
        """What processors may differ by."""
        return TOLERANCE[self.kind]


SMALL_PHOTO = {"channels": (4, 6, 8), "encoder_blocks": (1, 2, 1), "decoder_blocks": (2, 1)}
CASES = (
    Case("strcnn_dtb_lite", None),
    Case("strcnn_dtb_lite", None, size=(45, 83), through_engine=True),
    Case("photo_lite", None, frames=2),
    Case("photo_lite", None, frames=2, size=(45, 83), through_engine=True),
    Case("strcnn_dtb_lite", {"m": 2, **SMALL_LITE}),
    Case("cnn", frames=2),
    Case("strcnn"),
    Case("strcnn_dtb"),
    Case("strcnn_dtb", {"m": 2, "residual": True}),
    Case("mscnn", frames=1, size=(32, 64), gain=0.5),
    Case("mscnn", {"scales": 2, "blocks": 1, "channels": 4, "pyramid": "average"}, frames=2),
    Case("srn", frames=1, size=(32, 64), gain=0.75),
    Case("srn", {"colour": True, "lstm": False}, frames=1, size=(32, 64), gain=0.75),
    Case("dmphn", frames=1, gain=0.75),
    Case("dmphn", {"levels": 2}, frames=1, gain=0.75),
    Case("photo_lite", SMALL_PHOTO, frames=2),
)

# ------------------------------------------------------------------------- by integer arithmetic


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers below 2^32 that look random: a multiplication and shifts, modulo 2^32, twice."""
    x = numbers & np.uint64(0xFFFFFFFF)
    for factor in (0x7FEB352D, 0x846CA68B):
        x = (x ^ (x >> np.uint64(16))) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(15))


def fill(network: torch.nn.Module, gain: float = 1.0) -> torch.nn.Module:
    """Give a network weights of ordinary size everywhere; the one number of a blending is kept.

    The square root is the only arithmetic here that is not exact, and IEEE 754 rounds it correctly.
    """
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim == 0:
                continue
            start = np.uint64(zlib.crc32(name.encode()))
            bits = mixed(np.arange(p.numel(), dtype=np.uint64) * np.uint64(0x9E3779B1) + start)
            unit = (bits >> np.uint64(8)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
            scale = (
                np.sqrt(np.float32(3 * gain**2) / p[0].numel()) if p.ndim == 4 else np.float32(0.05)
            )
            p.copy_(torch.from_numpy((unit * scale).reshape(p.shape)))
    return network.eval()


def clip(frames: int, height: int, width: int, channels: int = 3) -> NDArray[np.uint16]:
    """Frames of 0..65535, (n, channels, H, W): edges, slopes and noise in motion, and a cut."""
    n, c, y, x = np.ogrid[:frames, :channels, :height, :width]
    shift = 3 * n + 40 * (n >= CUT)
    x, y = x + 2 * shift, y + shift
    edges = ((x // 11 + y // 7) % 2) * 20000
    slopes = (37 * x + 23 * y + 5000 * c) % 24000
    noise = mixed((x * 7919 + y * 104729 + c * 1299709).astype(np.uint64)).astype(np.int64) % 16000
    made: NDArray[np.int64] = edges + slopes + noise
    return made.astype(np.uint16)


# ---------------------------------------------------------------------------------- the results


def network_of(case: Case) -> Any:
    """The network of a case, with its weights, in the memory layout that the engine uses."""
    if case.config is None:
        network = load(case.network).network
    else:
        network = fill(build_network(case.network, case.config), case.gain)
    return network.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def by_itself(network: Any, frames: Frames) -> Frames:
    """The network over frames of 0..1, from fresh state at the first and at the cut."""
    spec: NetworkSpec = network.spec
    plan = Plan(0, 0, spec.look_behind, spec.look_ahead)
    ready = [torch.from_numpy(f)[None] for f in frames]
    state: State | None = None
    out = []
    for n in range(len(frames)):
        window = plan.window(n, len(frames), lambda i: i == CUT)
        sharp, state = step_of(
            network, torch.cat([ready[i] for i in window], dim=1), None if n == CUT else state
        )
        out.append(sharp[0].numpy())
    return np.stack(out)


def through_engine(case: Case) -> Frames:
    """The engine over 16-bit YUV 4:2:0; chroma is brought to luma's size, values to 0..1."""
    height, width = case.size
    luma = clip(case.frames, height, width, 1)[:, 0]
    chroma = clip(case.frames, -(-height // 2), -(-width // 2), 2) // 4 + np.uint16(24000)
    fmt = PixelFormat("yuv", 16, subsampling=(1, 1))
    frames = [([luma[n], *chroma[n]], n == CUT) for n in range(case.frames)]
    engine = Deblurrer(case.network, device="cpu", precision="fp32", segment=0)
    out = []
    for output in engine.stream(frames, fmt):
        y, *uv = output.value.planes
        whole = [p.repeat(2, 0).repeat(2, 1)[:height, :width] for p in uv]
        out.append(np.stack([y, *whole]).astype(np.float32) / np.float32(65535))
    return np.stack(out)


def results(case: Case, network: Any | None = None) -> Frames:
    """What a case comes to."""
    if case.through_engine:
        return through_engine(case)
    frames = clip(case.frames, *case.size).astype(np.float32) / np.float32(65536)
    return by_itself(network or network_of(case), frames)


# --------------------------------------------------------------------------------- the figures


@dataclass(frozen=True)
class Figures:
    """A frame in a few numbers.

    Attributes:
        crc: CRC-32 of its float32 values, exact.
        crc8: of its values rounded to 8 bits.
        largest: its largest value, without sign.
        means: of 3x4 blocks of each channel.
        samples: of 4 places of each channel.
    """

    crc: str
    crc8: str
    largest: float
    means: list[float]
    samples: list[float]


def figures(frame: Frames) -> Figures:
    """The figures of a frame (channels, H, W)."""
    _, height, width = frame.shape
    rows = [np.array_split(band, 4, axis=2) for band in np.array_split(frame, 3, axis=1)]
    blocks = [block for row in rows for block in row]
    means = [float(c.mean(dtype=np.float64)) for block in blocks for c in block]
    places = [(height * i // 9, width * j // 9) for i, j in ((1, 2), (4, 4), (5, 8), (8, 1))]
    samples = [float(v) for y, x in places for v in frame[:, y, x]]
    eight = np.round(frame.clip(0, 1) * np.float32(255)).astype(np.uint8)
    return Figures(
        f"{zlib.crc32(np.ascontiguousarray(frame).tobytes()):08x}",
        f"{zlib.crc32(np.ascontiguousarray(eight).tobytes()):08x}",
        round(float(np.abs(frame).max()), 7),
        [round(v, 7) for v in means],
        [round(v, 7) for v in samples],
    )


@dataclass(frozen=True)
class Kind:
    """What exact results depend on.

    Attributes:
        torch: its version.
        machine: architecture.
        vendor: of the processor: libraries look at it as well.
        capability: the instruction set that torch's own code uses.
        onednn: what oneDNN was told to use at most; empty for all.
    """

    torch: str
    machine: str
    vendor: str
    capability: str
    onednn: str


def kind_here() -> Kind:
    """The kind of this machine."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = (line.partition(":") for line in text.splitlines())
    vendor = next((value.strip() for key, _, value in lines if key.strip() == "vendor_id"), "")
    return Kind(
        torch.__version__,
        platform.machine(),
        vendor or platform.processor(),
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
    )


def weights_here() -> dict[str, str]:
    """SHA-256 of each shipped model that is among the cases."""
    return {c.network: shipped()[c.network].sha256 for c in CASES if c.config is None}


def made_here() -> dict[str, str]:
    """CRC-32 of what integer arithmetic makes: a wrong one here means nothing about networks."""
    network = fill(build_network("strcnn_dtb_lite", SMALL_LITE))
    weights = b"".join(p.detach().numpy().tobytes() for p in network.parameters())
    return {
        "clip": f"{zlib.crc32(clip(5, 64, 96).tobytes()):08x}",
        "weights": f"{zlib.crc32(weights):08x}",
    }


def write() -> None:
    """Write the file anew."""
    with one_thread():
        cases = {c.name: [asdict(figures(f)) for f in results(c)] for c in CASES}
    head = {"kind": asdict(kind_here()), "weights": weights_here(), "made": made_here()}
    lines = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    each = [f'"{k}": [\n{",\n".join(json.dumps(f) for f in v)}\n]' for k, v in cases.items()]
    text = ",\n".join([*lines, '"cases": {\n' + ",\n".join(each) + "\n}"])
    FILE.write_text("{\n" + text + "\n}\n", encoding="utf-8")
    print(f"{FILE}: {len(CASES)} cases, {FILE.stat().st_size} bytes")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: how work is divided is part of the result."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------ the spread


@dataclass(frozen=True)
class Setting:
    """A way to compute the same.

    Attributes:
        name: of the row.
        environment: variables.
        threads: of torch.
        channels_last: the layout of weights, else contiguous.
        onednn: whether torch may use oneDNN.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    channels_last: bool = True  # of networks by themselves
    onednn: bool = True


SETTINGS = (
    Setting("as recorded, again"),
    Setting("2 threads", threads=2),
    Setting("contiguous", channels_last=False),
    Setting("contiguous, 2 threads", threads=2, channels_last=False),
    Setting("AVX2", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    Setting("oneDNN AVX", {"ONEDNN_MAX_CPU_ISA": "AVX"}),
    Setting("oneDNN SSE4.1", {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    Setting("oneDNN SSE4.1, 2 threads", {"ONEDNN_MAX_CPU_ISA": "SSE41"}, threads=2),
    Setting("torch without AVX2", {"ATEN_CPU_CAPABILITY": "default"}),
    Setting(
        "torch without AVX2, oneDNN SSE4.1",
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    ),
    Setting("without oneDNN", onednn=False),
    Setting(
        "without oneDNN, torch without AVX2",
        {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        onednn=False,
    ),
)


def compute(setting: Setting, path: Path) -> None:
    """All results of a setting whose environment is this process's, as a file."""
    torch.set_num_threads(setting.threads)
    found = {}
    without = torch.backends.mkldnn.flags(enabled=False)
    with contextlib.nullcontext() if setting.onednn else without:
        for case in CASES:
            network = None if case.through_engine else network_of(case)
            if network is not None and not setting.channels_last:
                network = network.to(memory_format=torch.contiguous_format)
            found[case.name] = results(case, network)
    np.savez(path, **found)  # type: ignore[arg-type]


def computed(settings: Sequence[Setting]) -> Iterator[tuple[Setting, dict[str, Frames]]]:
    """The results of each setting, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for setting in settings:
            path = Path(folder) / "results.npz"
            number = str(SETTINGS.index(setting))
            subprocess.run(
                [sys.executable, "-m", "tests.golden", "--compute", number, str(path)],
                env=os.environ | setting.environment,
                check=True,
                timeout=1200,
            )
            with np.load(path) as found:
                yield setting, dict(found)


def spread() -> None:
    """Print how far the settings lie from the recorded one, as a table in Markdown."""
    print(
        "| setting | shipped weights | weights made here | engine, codes of 16 bit "
        "| same float32 | same 8 bit |"
    )
    print("|---|---|---|---|---|---|")
    with one_thread():
        base = {c.name: results(c) for c in CASES}
    for setting, found in computed(SETTINGS):
        worst = dict.fromkeys(TOLERANCE, 0.0)
        same, same8, count = 0, 0, 0
        for case in CASES:
            for a, b in zip(base[case.name], found[case.name], strict=True):
                scale = 1 / 65535 if case.through_engine else max(1.0, float(np.abs(a).max()))
                difference = float(np.abs(a - b).max()) / scale
                worst[case.kind] = max(worst[case.kind], difference)
                one, other = figures(a), figures(b)
                same, same8 = same + (one.crc == other.crc), same8 + (one.crc8 == other.crc8)
                count += 1
        print(
            f"| {setting.name} | {worst['shipped']:.1e} | {worst['made']:.1e} "
            f"| {worst['engine']:.0f} | {same} of {count} | {same8} of {count} |",
            flush=True,
        )


@click.command()
@click.option("--write", "writing", is_flag=True, help="Write tests/golden.json anew.")
@click.option("--spread", "spreading", is_flag=True, help="Compare settings of this machine.")
@click.option("--compute", "computing", nargs=2, hidden=True)
def main(writing: bool, spreading: bool, computing: tuple[str, str] | None) -> None:
    """Golden figures of every network."""
    if computing is not None:
        compute(SETTINGS[int(computing[0])], Path(computing[1]))
    if writing:
        write()
    if spreading:
        spread()


if __name__ == "__main__":
    main()
