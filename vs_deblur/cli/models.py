"""``vs-deblur models``: what ships, what a weights file is, and published ones converted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vs_deblur.cli._output import OutputFile
from vs_deblur.cli._progress import tell, tell_json, warn
from vs_deblur.errors import OutputError, WeightsError, reason

if TYPE_CHECKING:
    from vs_deblur.convert import Converted
    from vs_deblur.weights import Card, Loaded
    from vs_deblur_models.registry import Entry

Row = dict[str, Any]

VGA = 640 * 480


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _of_card(card: Card) -> Row:
    """What the manifest says."""
    return {
        "name": card.name,
        "network": card.network,
        "kind": card.kind,
        "shipped": True,
        "default": card.default,
        "licence": card.licence,
        "path": str(card.path),
        "bytes": _size_of(card.path),
        "sha256": card.sha256,
        "recipe": card.recipe,
        "training_data": card.training_data,
        "gain_db": dict(card.gain_db),
        "mean_gain_db": card.mean_gain if card.gain_db else None,
    }


def _of_network(network: Any) -> Row:
    """What the network itself tells."""
    spec = network.spec
    return {
        "network": spec.network,
        "config": dataclasses.asdict(network.config),
        "parameters": sum(p.numel() for p in network.parameters()),
        "gflop_640x480": spec.flops_per_pixel * VGA / 1e9,
        "look_behind": spec.look_behind,
        "look_ahead": spec.look_ahead,
        "recurrent": spec.is_recurrent,
        "receptive_field": spec.receptive_field,
        "multiple_of": spec.multiple_of,
        "minimum": spec.minimum,
    }


def _of_untrained(entry: Entry) -> Row:
    """A network of which no weights ship."""
    import torch

    from vs_deblur_models.spec import takes_frames

    with torch.device("meta"):  # shapes without values
        network = entry.build()
    return {
        "name": entry.name,
        "kind": "video" if takes_frames(network) else "photo",
        "shipped": False,
        "paper": entry.paper,
        "published": entry.is_published,
        **_of_network(network),
    }


def listing() -> tuple[list[Row], list[WeightsError]]:
    """A row for each shipped model, then for each network of which no weights ship.

    Returns:
        the rows, and what is wrong with the shipped models whose ``ok`` is false.

    Raises:
        WeightsError: the manifest cannot be read.
    """
    from vs_deblur.weights import load, shipped
    from vs_deblur_models.registry import ENTRIES

    rows: list[Row] = []
    faults = []
    cards = shipped().values()
    for card in cards:
        row = _of_card(card)
        try:
            row |= _of_network(load(card.name).network) | {"ok": True}
        except WeightsError as error:
            row |= {"ok": False, "problem": str(error)}
            faults.append(error)
        rows.append(row)
    known = {card.network for card in cards}
    rows += [_of_untrained(e) for e in ENTRIES.values() if e.name not in known]
    return rows, faults


def details(model: str) -> tuple[Row, WeightsError | None]:
    """All that is known of a model, and why it cannot be loaded if so.

    Args:
        model: "auto", the name of a shipped model or of a network without weights, or the path of
            a safetensors file.

    Raises:
        WeightsError: no such model or file, or a file that is not safetensors.
    """
    from vs_deblur.weights import load, locate, read_tensors, sha256_of, shipped
    from vs_deblur_models.registry import ENTRIES

    try:
        path, card = locate(model)
    except WeightsError:
        if model in ENTRIES and model not in shipped():
            return _of_untrained(ENTRIES[model]), None
        raise
    row: Row = {"name": path.stem, "path": str(path), "bytes": _size_of(path)}
    if card is not None:
        row = _of_card(card)
    digest = sha256_of(path)
    if card is None:
        row["sha256"] = digest
    else:
        row["sha256_ok"] = digest == card.sha256
    try:
        loaded = load(model)
    except WeightsError as error:
        if card is None:
            read_tensors(path)  # of what is no weights file at all, nothing else is worth telling
        return row | {"ok": False, "problem": str(error)}, error
    return row | _of_network(loaded.network) | _provenance(loaded) | {"ok": True}, None


def _provenance(loaded: Loaded) -> Row:
    """Where a converted file comes from, as its metadata says."""
    try:
        found = json.loads(loaded.metadata.get("provenance", "null"), parse_constant=str)
    except (ValueError, RecursionError):
        return {}
    return {"provenance": found} if isinstance(found, dict) else {}


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f} MB"


def _as_text(value: object, levels: int = 4) -> str:
    """A value of a stranger's metadata as text."""
    if isinstance(value, dict | list) and not levels:
        return "…"
    if isinstance(value, dict):
        return ", ".join(f"{_as_text(k)} ({_as_text(v, levels - 1)})" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_as_text(v, levels - 1) for v in value) or "none"
    return str(value)


def _table(rows: list[Row]) -> Iterator[str]:
    titles = ("name", "kind", "default", "licence", "size", "parameters", "gain", "GFLOP 640x480")
    table: list[tuple[str, ...]] = [titles]
    for row in rows:
        gain = row.get("mean_gain_db")
        is_whole = row.get("ok", True)
        table.append(
            (
                row["name"],
                row["kind"],
                "yes" if row.get("default") else "",
                row.get("licence", "-"),
                _megabytes(row["bytes"]) if row["shipped"] else "no weights",
                f"{row['parameters']:,}" if is_whole else "damaged",
                "-" if gain is None else f"{gain:+.2f} dB",
                f"{row['gflop_640x480']:.1f}" if is_whole else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        left = [c.ljust(w) for c, w in zip(line[:4], widths[:4], strict=True)]
        right = [c.rjust(w) for c, w in zip(line[4:], widths[4:], strict=True)]
        yield "  ".join((*left, *right))


def _no_weights(published: list[str]) -> str:
    """What to say of networks without weights; the names are of those that can be converted."""
    from vs_deblur_models.registry import few

    text = "no weights: not trained yet"
    if published:
        text += f"; `vs-deblur models convert` makes a file of published ones of {few(published)}"
    return text


def _lines(row: Row) -> Iterator[str]:
    facts: dict[str, object] = {}
    if "paper" in row:
        facts["weights"] = _no_weights([row["name"]] if row["published"] else [])
        facts["paper"] = row["paper"]
    else:
        facts |= {"file": row["path"], "size": _megabytes(row["bytes"])}
    if "licence" in row:
        facts["licence"] = row["licence"]
        facts["training data"] = row["training_data"]
        facts["recipe"] = row["recipe"]
    if "sha256" in row:
        facts["sha256"] = (
            row["sha256"] + {True: " (ok)", False: " (differs)", None: ""}[row.get("sha256_ok")]
        )
    facts["network"] = row.get("network", "unknown")
    if row.get("ok", True):
        config = ", ".join(f"{k} = {v}" for k, v in row["config"].items())
        facts["hyper-parameters"] = config
        facts["parameters"] = f"{row['parameters']:,}"
        facts["work"] = f"{row['gflop_640x480']:.1f} GFLOP for a frame of 640x480"
        if row["look_behind"] or row["look_ahead"] or row["recurrent"]:
            facts["window"] = f"{row['look_behind']} frames back, {row['look_ahead']} ahead"
            facts["recurrent"] = "yes" if row["recurrent"] else "no"
        facts["receptive field"] = f"{row['receptive_field']} pixels each way in a frame"
        facts["sizes"] = f"multiples of {row['multiple_of']}, padded by itself"
    for name, value in row.get("provenance", {}).items():
        facts[_as_text(name).replace("_", " ")] = _as_text(value)
    for sequence, gain in row.get("gain_db", {}).items():
        facts[f"gain on {sequence}"] = f"{gain:+.2f} dB"
    if row.get("mean_gain_db") is not None:
        facts["mean gain"] = f"{row['mean_gain_db']:+.2f} dB"
    width = max(map(len, facts))
    yield row["name"]
    for name, fact in facts.items():
        yield f"  {name.ljust(width)}  {fact}"


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the models that ship, and the networks that still lack weights.

    Gain is the mean over the validation sequences of what PSNR gains over the blurred input.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_models, as_json=as_json)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """The same as `vs-deblur models` alone."""
    rows, faults = listing()
    if as_json:
        tell_json(rows)
    else:
        for line in _table(rows):
            tell(line)
        tell(
            "gain: PSNR over the blurred input, mean of the validation set "
            "(more: vs-deblur models info NAME)"
        )
        if not all(row["shipped"] for row in rows):
            tell(_no_weights([row["name"] for row in rows if row.get("published")]))
    for fault in faults[1:]:
        warn(str(fault))
    if faults:
        raise faults[0]


@command.command()
@click.argument("model", metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(model: str, as_json: bool) -> None:
    """All that is known of a shipped model, a network without weights or a safetensors file."""
    row, fault = details(model)
    if as_json:
        tell_json(row)
    else:
        for line in _lines(row):
            tell(line)
    if fault is not None:
        raise fault


def _write(found: Converted, part: Path, output: Path, half: bool) -> None:
    """Write a converted network as a part file, and load it again to prove it good.

    Raises:
        OutputError: it cannot be written.
        WeightsError: it cannot be loaded: a number is too large for 16 bits.
    """
    import torch

    from vs_deblur.weights import load
    from vs_deblur_models.registry import write_network

    try:
        dtype = torch.float16 if half else torch.float32
        write_network(found.network, part, dtype, found.metadata)
    except OSError as error:
        raise OutputError(f"cannot write: {reason(error)}", str(output)) from error
    try:
        load(str(part))
    except WeightsError as error:
        hint = "leave out --half" if half else None
        raise WeightsError(f"what was written is no good: {error.what}", None, hint) from error


def _files(source: Path) -> tuple[Path, ...]:
    """What must not be written over."""
    try:
        return (source, *(source.iterdir() if source.is_dir() else ()))
    except OSError:  # will be said when it is read
        return (source,)


@command.command()
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The safetensors file to make.",
)
@click.option("--network", metavar="NAME", help="Refuse weights of another network than this.")
@click.option(
    "--stacks",
    type=click.IntRange(1, 9),
    help="SDNet: take so many stacks; otherwise as many as the folder's name says, or all.",
)
@click.option(
    "--rgb-range",
    type=click.FloatRange(1e-3, 1e6),
    help="DeepDeblur-PyTorch: largest value it was trained with; 255 if not given.",
)
@click.option("--half", is_flag=True, help="Write 16-bit numbers: half the size, less exact.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
def convert(
    source: Path,
    output: Path,
    network: str | None,
    stacks: int | None,
    rgb_range: float | None,
    half: bool,
    overwrite: bool,
) -> None:
    """Convert a published checkpoint into a file for --model.

    SRC is a folder of DMPHN or SDNet (encoder_lv1.pkl …), a checkpoint of DeepDeblur-PyTorch, a
    TensorFlow checkpoint of SRN (needs TensorFlow), or a PyTorch state dict with our names.
    Nothing in a pickle is ever run.
    """
    from vs_deblur.convert import convert as read

    with OutputFile(output, overwrite=overwrite, inputs=_files(source), private=True) as file:
        if file.special:
            raise OutputError("output is not a plain file", str(output))
        found = read(source, network, stacks, rgb_range)
        _write(found, file.part, output, half)
    config = ", ".join(f"{k} = {v}" for k, v in dataclasses.asdict(found.network.config).items())
    parameters = sum(p.numel() for p in found.network.parameters())
    notes = "".join(f", {note}" for note in found.notes)
    tell(
        f"{output}: {found.network.spec.network} ({config}), {parameters:,} parameters, "
        f"from {found.layout}{notes}; use it with --model {output}"
    )
