"""The training loop: one GPU, several through torchrun, or the CPU; it goes on where it stopped.

Every batch is a pure function of (seed, step), so that a checkpoint needs to hold no generator:
network, average, optimiser and step are all there is. On the CPU an interrupted run ends with the
same weights, bit for bit; on a GPU deterministic algorithms are asked for, to the same end.
"""

from __future__ import annotations

import copy
import csv
import difflib
import hashlib
import math
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from training.adversarial import Adversary
from training.data import PairSequence, Sampler, decoded, load_high_speed, load_pairs
from training.interpolation import Averaging, load_video
from training.losses import LOSSES, multi_scale, scales_of, weight_penalty
from training.optimisers import Optimisers, average_gradients
from training.synthesis import SynthesisConfig, powers_of
from vs_deblur import weights as weights_files
from vs_deblur.errors import EngineError, InputError, UsageError, reason
from vs_deblur.metrics import mean, psnr
from vs_deblur.sequences import header, images
from vs_deblur.tiling import padded_size
from vs_deblur.timeline import Plan, stream
from vs_deblur_kernels.reference import pad_to
from vs_deblur_models.blocks import DynamicTemporalBlending, ResBlock
from vs_deblur_models.registry import ENTRIES, build_network, config_of, save_network
from vs_deblur_models.spec import State, VideoNetwork, step_of, takes_frames

# As a recipe names what is read into these.
_TABLES = {
    "PairSource": "[[pairs]]",
    "VideoSource": "[[videos]]",
    "SynthesisConfig": "[synthesis]",
}


def made[T](kind: type[T], values: Mapping[str, Any]) -> T:
    """An object of a dataclass from a table of a recipe.

    Raises:
        ValueError: a key that the class does not have.
        TypeError: one is missing.
    """
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f", did you mean {near[0]}?" if near else ""
            where = _TABLES.get(kind.__name__, "a recipe")
            raise ValueError(f"{where} has no {name}{meant}")
    return kind(**values)


@dataclass(frozen=True)
class PairSource:
    """A folder of real pairs: reduced by each factor, drawn with a weight a folder."""

    folder: str
    weight: float = 1.0
    reduce: tuple[int, ...] = (1,)


_LISTS = ("taus", "periods", "shutter", "powers")
# Settings of ordinary video. They came later, see ``Recipe.digest``.
_OF_ORDINARY = frozenset(("periods", "shutter", "reduce", "most", "powers"))


@dataclass(frozen=True)
class VideoSource:
    """A sharp video, averaged by equation 1 of Kim et al. 2017.

    Attributes:
        file: its place in the data folder.
        taus: of high-speed video: frames of an exposure, a sequence for each.
        periods: of ordinary video, instead: its frames from one blurred frame to the next, a
            sequence for each; what lies between its frames is interpolated.
        shutter, reduce, most, powers: of ordinary video, see
            :class:`training.interpolation.Averaging`.
        linear: average in linear light instead of the encoded values.
        weight: how often it is drawn, all sequences together.
    """

    file: str
    taus: tuple[int, ...] = (7, 11, 15)
    periods: tuple[int, ...] = ()
    shutter: tuple[float, float] = (0.5, 1.0)
    reduce: int = 1
    most: int = 0
    powers: tuple[float, ...] = (1.0,)
    linear: bool = True
    weight: float = 1.0

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> VideoSource:
        """One of a recipe's ``[[videos]]``.

        Raises:
            ValueError, TypeError: by name.
        """
        for name, value in table.items():
            if isinstance(value, list) is not (name in _LISTS):
                what = "a list: [...]" if not isinstance(value, list) else "one value"
                raise TypeError(f"{name} of a video must be {what}")
        if not isinstance(table.get("file"), str):
            raise TypeError("a video must have a file")
        given = {k: tuple(x) if isinstance(x, list) else x for k, x in table.items()}
        if "powers" in given:
            given["powers"] = powers_of(table["powers"])
        video = made(cls, given)
        for tau in video.taus:
            if type(tau) is not int or tau < 3 or tau % 2 == 0:
                raise ValueError(f"taus must be odd, from 3, not {tau!r}")
        for name, least, values in (
            ("periods", 1, video.periods),
            ("reduce", 1, (video.reduce,)),
            ("most", 0, (video.most,)),
        ):
            for value in values:
                if type(value) is not int or value < least:
                    raise ValueError(f"{name} must be whole and at least {least}, not {value!r}")
        shares = [x for x in video.shutter if type(x) in (int, float)]
        if len(shares) != 2 or shares != sorted(shares) or not 0 < shares[0] <= shares[1] <= 1:
            raise ValueError("shutter must be two shares of a period, the smaller first")
        if video.powers != (1.0,) and not video.linear:
            raise ValueError("powers are of linear light: linear must be true")
        weight = video.weight
        if type(weight) not in (int, float) or not 0 < weight < math.inf:
            raise ValueError(f"weight of a video must be a number above 0, not {weight!r}")
        if type(video.linear) is not bool:
            raise TypeError(f"linear must be true or false, not {video.linear!r}")
        for name in ("taus", "periods"):
            if name in table and not table[name]:
                raise ValueError(f"{name} must not be empty")
        if video.periods and "taus" in table:
            raise ValueError("taus or periods: a video has one of them")
        if not video.periods and (unused := (_OF_ORDINARY - {"periods"}) & set(table)):
            raise ValueError(f"{min(unused)} is for ordinary video, which has periods")
        return video

    @property
    def averaging(self) -> Averaging:
        """How ordinary video is averaged."""
        how = self.periods, self.shutter, self.reduce, self.most, self.linear
        return Averaging(*how, self.powers)


# Values that a run can have: a rate of more than 1, a share of 40 are slips of the pen.
_RANGES = (
    (("steps", "batch", "frames", "size", "validate_every", "decay_every"), 1, 10**9),
    (("early_frames", "burn_in", "synthetic_count", "hold_out", "warmup", "seed"), 0, 10**9),
    (("real_share", "still_real_share", "sharp_share"), 0, 1),
    (("early_share", "average"), 0, 1),
    (("learning_rate", "final_learning_rate", "decay"), 0, 1),
    (("weight_decay", "adversarial", "clip", "softness"), 0, 1000),
)

_CHECKPOINT = "checkpoint.pt"  # in the folder of a run

# Settings that say something about a run, or measure it.
_LABELS = frozenset(("attribution", "validation", "same_scene", "default", "begins_with"))


@dataclass(frozen=True)
class Recipe:
    """A training run, as read from a TOML file in ``training/recipes``.

    Attributes:
        network: name in the registry; config: its hyper-parameters.
        steps, batch, frames, size: optimiser steps, sequences a step, frames and pixels of one.
        loss: name in :data:`training.losses.LOSSES`; weight_decay: factor of ``||W||^2``.
        halved_mean: photo networks of K sizes: times 1 / (2K), see ``multi_scale``.
        adversarial: weight of the adversarial term (photo networks, patches of at least 256
            pixels); 0 for none.
        optimiser: "adam" or "muon" (see :mod:`training.optimisers`); outer: the layers that stay
            with Adam under Muon.
        learning_rate, warmup, final_learning_rate: peak, steps of linear rise, value at the end.
        schedule: "cosine", or "step": times ``decay`` every ``decay_every`` steps (the paper's).
        clip: largest norm of the gradient; average: decay of the exponential moving average.
        precision: "bf16" (autocast) or "fp32"; seed: of every draw.
        validate_every: steps between measurements on validation pairs.
        real_share, still_real_share, sharp_share, softness: see
            :class:`training.data.Sampler`.
        synthetic_count: different synthetic sequences; photos: folder they are made from.
        live: make synthetic sequences anew for every sample, on the training's device.
        hold_out: keep every so-manieth photograph from training; 0: none.
        pairs, videos: real sequences; validation: pair folders to measure on, never trained on.
        same_scene: those of ``validation`` that show a scene of the training pairs (other frames).
        attribution: what the weights are trained on, for manifest and card.
        begins_with: the recipe whose weights a run of this one must be given with ``--initial``.
        default: whether ``model="auto"`` is to mean these weights, once published.
        early_frames, early_share: fewer frames a sequence for the first share of the steps: cheap
            steps first, long recurrences later.
        burn_in: in every other step, drawn at random, the recurrence has run through up to so many
            frames before the first that counts, without a slope (Kapturowski et al. 2019, section
            3): what it has come to after many frames is trained too, and not only its beginning.
    """

    network: str
    config: dict[str, Any] = field(default_factory=dict)
    steps: int = 10000
    batch: int = 4
    frames: int = 5
    size: int = 128
    loss: str = "charbonnier"
    weight_decay: float = 0.0
    halved_mean: bool = False
    adversarial: float = 0.0
    optimiser: str = "adam"
    outer: tuple[str, ...] = ("head", "output", "feedback")
    learning_rate: float = 4e-4
    final_learning_rate: float = 1e-6
    warmup: int = 200
    schedule: str = "cosine"
    decay: float = 0.96
    decay_every: int = 10000
    clip: float = 1.0
    average: float = 0.999
    precision: str = "fp32"
    seed: int = 0
    validate_every: int = 500
    early_frames: int = 0
    early_share: float = 0.0
    burn_in: int = 0
    real_share: float = 0.35
    still_real_share: float = 0.1
    sharp_share: float = 0.0
    softness: float = 0.0
    synthetic_count: int = 2000
    live: bool = False
    hold_out: int = 0
    photos: str = ""
    pairs: tuple[PairSource, ...] = ()
    videos: tuple[VideoSource, ...] = ()
    validation: tuple[str, ...] = ()
    same_scene: tuple[str, ...] = ()
    attribution: str = ""
    begins_with: str = ""
    default: bool = False
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe.

        Raises:
            UsageError: it cannot be read, has a key that no recipe has, or values that no run
                knows.
        """
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"no recipe can be read: {reason(error)}", str(path)) from error
        try:
            recipe = cls._of(raw)
            recipe.check()
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(str(error), str(path)) from error
        return recipe

    @classmethod
    def _of(cls, raw: dict[str, Any]) -> Recipe:
        for name in ("validation", "same_scene", "outer"):
            if isinstance(raw.get(name), str):
                raise TypeError(f"{name} must be a list: [...]")
        raw["pairs"] = tuple(
            made(PairSource, {**p, "reduce": tuple(p.get("reduce", (1,)))})
            for p in raw.get("pairs", ())
        )
        raw["videos"] = tuple(VideoSource.of(v) for v in raw.get("videos", ()))
        raw["validation"] = tuple(raw.get("validation", ()))
        synthesis = raw.get("synthesis", {})
        if "taus" in synthesis:
            synthesis["taus"] = tuple(synthesis["taus"])
        if "powers" in synthesis:
            synthesis["powers"] = powers_of(synthesis["powers"])
        raw["synthesis"] = made(SynthesisConfig, synthesis)
        raw["same_scene"] = tuple(raw.get("same_scene", ()))
        if "outer" in raw:
            raw["outer"] = tuple(raw["outer"])
        return made(cls, raw)

    def check(self) -> None:
        """Refuse values that would train something else in silence.

        Raises:
            ValueError: by name.
        """
        known = {
            "loss": tuple(LOSSES),
            "optimiser": ("adam", "muon"),
            "schedule": ("cosine", "step"),
            "precision": ("fp32", "bf16"),
            "same_scene": self.validation,
        }
        for name, values in known.items():
            value = getattr(self, name)
            for v in value if isinstance(value, tuple) else (value,):
                if v not in values:
                    raise ValueError(f"{name} must be one of {', '.join(values)}, not {v}")
        for names, low, high in _RANGES:
            for name in names:
                value = getattr(self, name)
                kind = type(getattr(Recipe(""), name))
                if isinstance(value, bool) or not isinstance(value, (int, kind)):
                    what = "a whole number" if kind is int else "a number"
                    raise TypeError(f"{name} must be {what}, not {value!r}")
                if not low <= value <= high:
                    raise ValueError(f"{name} must be {low:g} to {high:g}, not {value:g}")
        if self.early_frames > self.frames:
            raise ValueError(f"early_frames must be at most frames, {self.frames}")
        if self.pairs and not any(source.weight > 0 for source in self.pairs):
            raise ValueError("some pairs must have a weight")
        if self.network not in ENTRIES:
            raise ValueError(f"network must be one of {', '.join(ENTRIES)}, not {self.network}")
        try:
            with torch.device("meta"):
                network = build_network(self.network, self.config)
        except TypeError as error:  # a hyper-parameter that it does not have
            raise ValueError(f"config of {self.network}: {error}") from error
        spec = network.spec
        multiple = max(spec.multiple_of, spec.width_multiple_of or 1)
        if self.size % multiple or self.size < spec.minimum:
            least = f"at least {spec.minimum}"
            raise ValueError(f"size must be a multiple of {multiple}, {least}, for {self.network}")
        if self.burn_in and not takes_frames(network):
            raise ValueError(f"burn_in is for networks for video, {self.network} is for photos")

    def kept_from_training(self, photos: Sequence[Path]) -> list[Path]:
        """The photographs that are held out."""
        return [p for i, p in enumerate(photos) if self.hold_out and i % self.hold_out == 0]

    def digest(self) -> str:
        """What tells this recipe from others, as text.

        What is as it is by default does not count, so that new kinds of settings leave runs that
        do not use them as they were; nor what changes no weights.
        """
        usual = asdict(Recipe(self.network))
        here = {k: v for k, v in asdict(self).items() if k not in _LABELS}
        set_here = {k: v for k, v in here.items() if v != usual[k]}
        if "synthesis" in set_here:
            made_so = set_here["synthesis"].items()
            set_here["synthesis"] = {k: v for k, v in made_so if v != usual["synthesis"][k]}
        if "videos" in set_here:
            later = {f.name: f.default for f in fields(VideoSource) if f.name in _OF_ORDINARY}
            set_here["videos"] = tuple(
                {k: v for k, v in video.items() if k not in later or v != later[k]}
                for video in set_here["videos"]
            )
        return hashlib.sha256(repr((self.network, set_here)).encode()).hexdigest()[:16]

    def frames_at(self, step: int) -> int:
        """Frames of a sequence at a step."""
        early = self.early_frames and step < self.early_share * self.steps
        return self.early_frames if early else self.frames

    def burn_in_at(self, number: int) -> int:
        """Frames that the recurrence has run through before those of a batch."""
        rng = np.random.default_rng([self.seed, 3, number])
        return int(rng.integers(1, self.burn_in + 1)) if self.burn_in and rng.random() < 0.5 else 0

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.schedule == "step":
            return rise * self.learning_rate * self.decay ** (step // self.decay_every)
        share = min(step / self.steps, 1.0)
        low, high = self.final_learning_rate, self.learning_rate
        return rise * (low + (high - low) * 0.5 * (1 + math.cos(math.pi * share)))


def photographs(recipe: Recipe, data: Path) -> tuple[list[Path], list[Path]]:
    """The photographs of a recipe: those to train on, and those held out.

    Raises:
        InputError: there are none, or one is no picture.
    """
    folder = data / recipe.photos
    found = images(folder)
    for path in found:  # one that is damaged would end a run in its midst, at every try
        said = header(path)
        if said is None:
            raise InputError("this photograph cannot be read", str(path), "take it away")
        if said.is_deep:
            hint = "make it one of 8 bits"
            raise InputError("this photograph has more than 8 bits a sample", str(path), hint)
    kept = set(recipe.kept_from_training(found))
    trained = [p for p in found if p not in kept]
    if not trained:
        raise InputError("no photographs to synthesise from", str(folder))
    return trained, sorted(kept)


def _averaged(
    video: VideoSource, file: Path, cache: Path, say: Callable[[str], object]
) -> tuple[list[PairSequence], list[float]]:
    """The sequences of a video, and how often each is drawn.

    Every tau, or period and power, is drawn as often as the others, its scenes as often as they are
    long.
    """
    if not video.periods:
        found = [load_high_speed(file, tau, tau + 2, video.linear) for tau in video.taus]
        return found, [video.weight / len(found)] * len(found)
    found = load_video(file, video.averaging, cache, say)
    kinds = [sequence.name.rpartition("-")[2] for sequence in found]
    frames = Counter[str]()
    for kind, sequence in zip(kinds, found, strict=True):
        frames[kind] += len(sequence)
    each = video.weight / len(frames)
    return found, [each * len(s) / frames[k] for k, s in zip(kinds, found, strict=True)]


def _check_size(file: Path, video: VideoSource, size: int) -> None:
    """Refuse a video that is missing, or whose frames are smaller than a patch."""
    if not file.is_file():
        raise InputError("no such video", str(file))
    first = next(decoded(file), None)
    height, width = (0, 0) if first is None else first.shape[:2]
    if min(height, width) // video.reduce < size:
        how = f"{width}x{height} reduced by {video.reduce}"
        raise InputError(f"{how} is less than a patch of {size}", str(file), "a smaller reduce")


def check_beginning(recipe: Recipe, folder: Path, initial: Path | None) -> None:
    """Whether a run has what it begins with, before minutes are spent on what it is fed.

    Args:
        recipe: of the run.
        folder: of the run.
        initial: weights that are given.

    Raises:
        UsageError: there is no checkpoint, and the weights that the recipe asks for are not given.
    """
    if recipe.begins_with and initial is None and not (folder / _CHECKPOINT).exists():
        raise UsageError(
            f"this recipe begins with the weights of {recipe.begins_with}",
            str(folder),
            "give them with --initial",
        )


def make_sampler(
    recipe: Recipe,
    data: Path,
    cache: Path,
    device: str = "cpu",
    synthetic_seed: int | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Sampler:
    """The sampler of a recipe.

    Args:
        recipe: what is trained.
        data: the folder that the recipe's paths start from.
        cache: where synthetic sequences are kept (not those of a recipe that is ``live``), and
            those made of ordinary video, see :func:`training.interpolation.load_video`.
        device: where those are made.
        synthetic_seed: of the synthetic sequences, if not the recipe's.
        say: is told what takes minutes.

    Raises:
        InputError: pairs or photographs that are missing or cannot be read.
        UsageError: pairs that are for validation.
    """
    # What is quick to check comes first.
    for source, other in product(recipe.pairs, recipe.validation):
        here, there = (data / source.folder).resolve(), (data / other).resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            said = "these pairs are for validation: they cannot be trained on"
            raise UsageError(said, source.folder)
    for video in recipe.videos:
        _check_size(data / video.file, video, recipe.size)
    needs_photos = not (recipe.pairs or recipe.videos) or recipe.real_share < 1
    photos = photographs(recipe, data)[0] if needs_photos else []
    pairs: list[PairSequence] = []
    weights: list[float] = []
    for source in recipe.pairs:
        found = load_pairs(data / source.folder, source.reduce)
        pairs += found
        weights += [source.weight / len(found)] * len(found)
    for video in recipe.videos:
        averaged, shares = _averaged(video, data / video.file, cache / "videos", say)
        pairs += averaged
        weights += shares
    return sampler_of(recipe, pairs, weights, photos, cache, device, synthetic_seed)


def sampler_of(
    recipe: Recipe,
    pairs: Sequence[PairSequence],
    weights: Sequence[float],
    photos: Sequence[Path],
    cache: Path,
    device: str = "cpu",
    synthetic_seed: int | None = None,
) -> Sampler:
    """A sampler with a recipe's settings, of pairs and photographs that are given.

    Args:
        recipe: what is trained.
        pairs, weights: real sequences, and how often each is drawn.
        photos: sharp photographs for the synthesis.
        cache, device, synthetic_seed: as :func:`make_sampler`.
    """
    with torch.device("meta"):
        m = int(build_network(recipe.network, recipe.config).spec.look_behind)
    return Sampler(
        pairs=pairs,
        weights=weights,
        synthesis=recipe.synthesis,
        photos=photos,
        cache=cache,
        count=recipe.synthetic_count,
        real_share=recipe.real_share,
        still_real_share=recipe.still_real_share,
        sharp_share=recipe.sharp_share,
        softness=recipe.softness,
        size=recipe.size,
        longest=recipe.frames,
        m=m,
        batch=recipe.batch,
        seed=recipe.seed,
        synthetic_seed=synthetic_seed,
        live=torch.device(device) if recipe.live else None,
    )


def unroll(network: VideoNetwork, blurred: Tensor, state: State | None = None) -> Tensor:
    """Run the recurrence over (B, T + 2m, 3, H, W) and return (B, T, 3, H, W)."""
    spec = network.spec
    window = spec.window
    out = []
    for t in range(blurred.shape[1] - window + 1):
        sharp, state = network.step(blurred[:, t : t + window].flatten(1, 2), state)
        out.append(sharp)
    return torch.stack(out, dim=1)


@torch.no_grad()
def burnt_in(network: VideoNetwork, blurred: Tensor, count: int) -> State | None:
    """The state of the recurrence before a clip, as if it had run through ``count`` frames.

    Those are the clip's own, to and fro, the first as far from it as ``count``: an exposure
    reversed in time is an exposure.

    Args:
        network: a network for video.
        blurred: (B, T + 2m, 3, H, W).
        count: frames.

    Returns:
        The state that the clip's first window goes on with; None where there are no frames.
    """
    last = blurred.shape[1] - 1
    state: State | None = None
    if not count or not last:
        return state
    before = [last - abs(last - i % (2 * last)) for i in range(count, 0, -1)]
    frames = torch.cat((blurred[:, before], blurred), dim=1)
    for t in range(count):
        _, state = network.step(frames[:, t : t + network.spec.window].flatten(1, 2), state)
    return state


def predict(network: Any, blurred: Tensor, m: int, state: State | None = None) -> list[Tensor]:
    """What a network makes of (B, T + 2m, 3, H, W): full size (B, T, 3, H, W), then smaller ones.

    Networks for photos take each frame by itself; those for video go on from ``state``.
    """
    if takes_frames(network):
        return [unroll(network, blurred, state)]
    batch, frames = blurred.shape[0], blurred.shape[1] - 2 * m
    x = blurred[:, m : m + frames].flatten(0, 1)
    sizes = network.scales(x) if hasattr(network, "scales") else [network(x)]
    return [out.unflatten(0, (batch, frames)) for out in sizes]


@torch.no_grad()
def validation_gain(
    network: Any,
    sequence: PairSequence,
    frames: int = 30,
    margin: int = 0,
    memory: bool = True,
) -> float:
    """Mean gain in dB over the blurred input, the clip's edge frames repeated at its ends.

    Args:
        network: what deblurs.
        sequence: pairs of frames.
        frames: of which the first so many are taken.
        margin: frames at both ends that are computed and do not count.
        memory: False begins every frame with the empty state of a clip's first one.

    Returns:
        The mean; frames that are identical to the sharp ones, before or after, are left out; NaN
        if all are.
    """
    spec = network.spec
    blurred = torch.from_numpy(sequence.blurred[:frames]).permute(0, 3, 1, 2).float() / 255.0
    height, width = blurred.shape[-2:]
    size = padded_size(height, width, spec.multiple_of, spec.minimum, spec.width_multiple_of)
    device = next(network.parameters()).device
    padded = torch.split(pad_to(blurred, *size).to(device), 1)

    def step(window: Sequence[Tensor], state: State | None) -> tuple[Tensor, State]:
        return step_of(network, torch.cat(list(window), dim=1), state if memory else None)

    plan = Plan(0, 0, spec.look_behind, spec.look_ahead)
    gains = []
    for out in stream(plan, ((x, n == 0) for n, x in enumerate(padded)), step):
        if not margin <= out.n < len(padded) - margin:
            continue
        result = out.value[0, :, :height, :width].cpu().float().clamp(0, 1).mul(255).round()
        image = result.to(torch.uint8).permute(1, 2, 0).numpy()
        before, after = (psnr(i, sequence.sharp[out.n]) for i in (sequence.blurred[out.n], image))
        gains.append(None if math.isinf(before) or math.isinf(after) else after - before)
    found = mean(gains)
    return math.nan if found is None else found


def dead_share(network: nn.Module, run: Any) -> float:
    """Share of the units inside ResBlocks that are zero everywhere while ``run()`` runs."""
    alive: dict[str, Tensor] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, ResBlock):

            def look(_: nn.Module, __: Any, out: Tensor, name: str = name) -> None:
                active = (out.detach() > 0).any(dim=0).flatten(1).any(dim=1)
                alive[name] = alive[name] | active if name in alive else active

            hooks.append(module.conv1.register_forward_hook(look))
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    if not alive:
        return 0.0
    return 1.0 - float(torch.cat(list(alive.values())).float().mean())


_STEPS_APART = 10**8
_LARGEST_FALL = 3.0  # dB that the gain on training samples may fall below the best before
_TELLING_SAMPLES = 100  # of which the mean gain is told from chance
_MOST_SETBACKS = 4
_LEAST_SHARE = 0.5  # of the steps whose loss and gradient must be numbers


def _atomic_save(value: Any, path: Path) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())  # a loss of power must not leave an empty file with the name
    part.replace(path)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What a run keeps of itself.

    Raises:
        InputError: the file cannot be read, or is no checkpoint of a run.
    """
    try:
        kept = torch.load(path, map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damage makes torch stumble over anything
        hint = "weights of earlier steps are in the folder weights beside it"
        raise InputError("this checkpoint cannot be read", str(path), hint) from error
    needed = {"network", "average", "optimiser", "step"}
    if not isinstance(kept, dict) or not needed <= kept.keys():
        raise InputError("this is no checkpoint of a run", str(path))
    return kept


def weights_at(folder: Path, step: int) -> Path:
    """Where a run keeps the weights (of the moving average) that it had at a step."""
    return folder / "weights" / f"{step:06d}.safetensors"


class Trainer:
    """One run of a recipe in a folder that holds its checkpoint, its log and its weights.

    Args:
        recipe: what to train.
        sampler: where batches come from.
        folder: of the run; if it holds a checkpoint, the run goes on from there.
        device: "cpu" or "cuda".
        allow_changes: go on even if the checkpoint is of another recipe.
        initial: weights to begin with, where there is no checkpoint yet (shipped ones, to train
            them further); where there is one, it must have begun with them.

    Raises:
        UsageError: the checkpoint is of another recipe, of other pairs or photographs, or began
            with other weights; the recipe begins with weights and none are given; ``initial`` is
            of another network.
        WeightsError: ``initial`` cannot be read.
        EngineError: in a run: it diverged too often.
    """

    def __init__(
        self,
        recipe: Recipe,
        sampler: Sampler,
        folder: Path,
        device: str,
        *,
        allow_changes: bool = False,
        initial: Path | None = None,
    ) -> None:
        self.recipe, self.sampler, self.folder = recipe, sampler, folder
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
        self.device = torch.device(device)
        torch.manual_seed(recipe.seed)
        network = build_network(recipe.network, recipe.config).to(self.device)
        self.begun_with = ""  # sha256 of the weights that the run began with
        if initial is not None:
            network.load_state_dict(self._fitting(network, initial).state_dict())
            self.begun_with = weights_files.sha256_of(initial)
        self.network = network.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network)
        self.optimiser = Optimisers(self.network, recipe.optimiser, recipe.outer)
        self.adversary: Adversary | None = None
        if recipe.adversarial:
            self.adversary = Adversary(recipe.adversarial, self.device)
        self.step = 0
        self.setbacks = 0  # how often the run diverged
        self.changed_at: list[int] = []  # steps at which settings were changed
        self._best_gain = -math.inf
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / _CHECKPOINT
        if self.checkpoint.exists():
            self._resume(allow_changes)
        else:
            check_beginning(recipe, folder, initial)
            if initial is not None and not self.rank:
                self._keep_weights()  # step 0: they may have a part in a mean that is published

    @staticmethod
    def _fitting(network: Any, path: Path) -> Any:
        """The network of a file, if it is the same one as this."""
        found = weights_files.load(str(path)).network
        same = found.spec.network == network.spec.network
        if not same or config_of(found) != config_of(network):
            raise UsageError(
                f"these weights are of {found.spec.network} {config_of(found)}, "
                f"the recipe is for {network.spec.network} {config_of(network)}",
                str(path),
            )
        return found

    def _resume(self, allow_changes: bool) -> None:
        kept = read_checkpoint(self.checkpoint, self.device)
        begun_with = kept.get("begun_with", "")
        other = ""
        if kept.get("recipe") != self.recipe.digest():
            other = "is of another recipe, or has other settings"
        elif kept.get("data") != self.sampler.digest:
            other = "is of other pairs or photographs"
        elif kept.get("world", self.world) != self.world:
            other = f"is of {kept['world']} processes"
        elif self.begun_with not in ("", begun_with):
            other = "began with other weights"
        if other and not allow_changes:
            hint = "take another folder for this run (`train` has --allow-changes)"
            raise UsageError(f"this run {other}", str(self.checkpoint), hint)
        self.begun_with = begun_with
        self.changed_at = [*kept.get("changed_at", ()), *([kept["step"]] if other else ())]
        try:
            self.network.load_state_dict(kept["network"])
            self.average.load_state_dict(kept["average"])
        except RuntimeError as error:
            raise UsageError("this run is of another network", str(self.checkpoint)) from error
        self.optimiser.load_state_dict(kept["optimiser"])
        if self.adversary is not None and "adversary" in kept:
            self.adversary.load_state_dict(kept["adversary"])
        self.step = kept["step"]
        self.setbacks = kept.get("setbacks", 0)
        self._best_gain = kept.get("best_gain", -math.inf)

    def save(self, row: Mapping[str, float] | None = None) -> None:
        """Write weights (of the moving average), a row of the log, and the checkpoint.

        The checkpoint comes last: who goes on from it finds what belongs to it.
        """
        if self.rank:
            return
        save_network(self.average, self.folder / f"{self.recipe.network}.safetensors")
        self._keep_weights()
        if row is not None:
            self._log(row)
        kept = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "setbacks": self.setbacks,
            "best_gain": self._best_gain,
            "recipe": self.recipe.digest(),
            "data": self.sampler.digest,
            "begun_with": self.begun_with,
            "world": self.world,
            "changed_at": self.changed_at,
        }
        if self.adversary is not None:
            kept["adversary"] = self.adversary.state_dict()
        _atomic_save(kept, self.checkpoint)

    def _keep_weights(self) -> None:
        kept = weights_at(self.folder, self.step)
        kept.parent.mkdir(exist_ok=True)
        save_network(self.average, kept)

    def _loss(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, gain over the input in dB, predicted and sharp frames (B, T, 3, H, W)."""
        recipe = self.recipe
        # After a setback other batches than those that led to it.
        number = step + self.setbacks * _STEPS_APART
        batch = self.sampler.draw(number, recipe.frames_at(step), self.rank)
        blurred, sharp = batch.blurred.to(self.device), batch.sharp.to(self.device)
        half = recipe.precision == "bf16"
        m = self.sampler.m
        # Each for itself: autocast would keep weights that it cast where there is no slope.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            state = None
            if takes_frames(self.network):
                state = burnt_in(self.network, blurred, recipe.burn_in_at(number))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            sizes = predict(self.network, blurred, m, state)
        sizes = [out.float() for out in sizes]
        predicted = sizes[0]
        flat = [out.flatten(0, 1) for out in sizes]
        targets = scales_of(self.network, flat, sharp.flatten(0, 1))
        loss = multi_scale(LOSSES[recipe.loss], flat, targets, recipe.halved_mean)
        if self.adversary is not None:
            loss = loss + self.adversary.term(flat[0])
        middle = blurred[:, m : m + predicted.shape[1]]
        with torch.no_grad():
            before = (middle - sharp).square().mean(dim=(1, 2, 3, 4))
            after = (predicted - sharp).square().mean(dim=(1, 2, 3, 4))
            # Samples without blur have no PSNR: they count as 45 dB.
            gain = 10 * torch.log10((before + 3e-5) / (after + 3e-5)).mean()
        if recipe.weight_decay:
            loss = loss + recipe.weight_decay * weight_penalty(self.network)
        return loss, gain, predicted, sharp

    def train_step(self) -> tuple[float, float, float]:
        """One optimiser step; returns loss, gain over the input in dB, and gradient norm.

        Where the norm is no number nothing is changed.
        """
        recipe = self.recipe
        loss, gain, predicted, sharp = self._loss(self.step)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.world > 1:
            average_gradients(self.network, self.world)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        if torch.isfinite(norm):  # one bad batch must not cost the run
            rate = self.rate
            self.optimiser.step(rate)
            if self.adversary is not None:  # the two sides take turns
                pictures = predicted.flatten(0, 1), sharp.flatten(0, 1)
                self.adversary.update(*pictures, rate, self.world)
        for module in self.network.modules():
            if isinstance(module, DynamicTemporalBlending):
                module.project_()
        decay = min(recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, value in zip(
                self.average.parameters(), self.network.parameters(), strict=True
            ):
                average.lerp_(value, 1 - decay)
        self.step += 1
        return float(loss.detach()), float(gain), float(norm)

    @property
    def rate(self) -> float:
        """Learning rate of the next step: the recipe's, halved by each setback."""
        return self.recipe.rate(self.step) * 0.5**self.setbacks

    def _over_processes(self, figures: Tensor) -> Tensor:
        """The mean over all processes, which must come to the same decisions."""
        if self.world == 1:
            return figures
        shared = figures.to(self.device)
        dist.all_reduce(shared)
        return shared.cpu() / self.world

    def _has_diverged(self, loss: float, gain: float, steps: int) -> bool:
        """Whether the last steps led astray: their mean loss is no number, or their gain fell.

        The gain of a few steps says more about their samples than about the network.
        """
        if not math.isfinite(loss):
            return True
        if steps * self.recipe.batch < _TELLING_SAMPLES:
            return False
        fell = gain < self._best_gain - _LARGEST_FALL
        if not fell:
            self._best_gain = max(self._best_gain, gain)
        return fell

    def _go_back(self) -> None:
        """Go back to the last checkpoint, to go on from it with half the rate.

        Raises:
            EngineError: there is none, or it has been gone back to too often.
        """
        where = self.step
        hint = "take a smaller learning_rate"
        if not self.checkpoint.exists():
            raise EngineError(f"the run diverged before step {where}", str(self.folder), hint)
        setbacks = self.setbacks + 1
        if setbacks > _MOST_SETBACKS:
            said = f"the run diverged {setbacks} times, the last at step {where}"
            raise EngineError(said, str(self.folder), hint)
        self._resume(allow_changes=True)
        self.setbacks = setbacks
        print(f"diverged at step {where}: back to step {self.step}, rate halved", flush=True)
        self.save()

    def validate(self, sequences: Iterable[PairSequence]) -> dict[str, float]:
        """Gain of the moving average on each sequence, share of dead units, and beta."""
        row = {s.name: validation_gain(self.average, s, 10) for s in sequences}
        batch = self.sampler.draw(self.step, self.recipe.frames).blurred.to(self.device)
        row["dead"] = dead_share(self.network, lambda: predict(self.network, batch, self.sampler.m))
        for module in self.average.modules():
            if isinstance(module, DynamicTemporalBlending):
                row["beta"] = float(module.beta.detach())
        return row

    def run(self, validation: list[PairSequence]) -> None:
        """Train to the end of the recipe, with a row in log.csv at every validation.

        The first row, of step 0, is of what the run begins with: it has no figures of training.
        """
        recipe = self.recipe
        if self.step == 0 and self.rank == 0:
            if not self.checkpoint.exists():
                self._set_log_aside()  # of a run that ended before it could be gone on with
            untrained = dict.fromkeys(("loss", "train_gain", "gradient"), math.nan)
            self._log({"step": 0, "rate": self.rate, **untrained, **self.validate(validation)})
        total = torch.zeros(5)  # of loss, gain and norm; steps that count, and all
        while self.step < recipe.steps:
            figures = torch.tensor([*self.train_step(), 1.0, 1.0])
            # A batch of which the loss is no number is left out, of the sums too.
            is_number = bool(figures.isfinite().all())
            total += figures if is_number else torch.tensor([0, 0, 0, 0, 1.0])
            if self.step % recipe.validate_every and self.step != recipe.steps:
                continue
            *sums, counted, steps, last = self._over_processes(
                torch.tensor([*total, float(is_number)])
            ).tolist()
            total.zero_()
            loss, gain, norm = (x / counted if counted else math.inf for x in sums)
            # Weights that are no numbers spoil all that comes after, the last step too.
            spoilt = counted < _LEAST_SHARE * steps or last < 1
            if self._has_diverged(math.inf if spoilt else loss, gain, round(steps)):
                self._go_back()
                continue
            row: dict[str, float] = {
                "step": self.step,
                "rate": self.rate,
                "loss": loss,
                "train_gain": gain,
                "gradient": norm,
                **(self.validate(validation) if self.rank == 0 else {}),
            }
            self.save(row)
        if self.world > 1:
            dist.barrier()  # what the first process has written is there for all

    def _set_log_aside(self, columns: Sequence[str] = ()) -> None:
        """Keep a log that has not these columns beside the one that begins, by its last step."""
        log = self.folder / "log.csv"
        if not log.exists():
            return
        with log.open(newline="") as file:
            rows = list(csv.reader(file))
        if not rows or rows[0] != list(columns):
            log.replace(log.with_name(f"log-{rows[-1][0] if rows else 0}.csv"))

    def _log(self, row: Mapping[str, float]) -> None:
        """Add a row to log.csv; a log with other columns is kept beside it."""
        self._set_log_aside(list(row))
        log = self.folder / "log.csv"
        new = not log.exists()
        with log.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" for k, v in row.items()})
        # Nothing was trained before row 0.
        shown = {k: v for k, v in row.items() if row["step"] or not math.isnan(v)}
        print("  ".join(f"{k} {v:.4g}" for k, v in shown.items()), flush=True)
