"""The filter in a process of its own for each check; see checks.py for what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vs_deblur_models.registry import build_network, save_network

Isolated = Callable[..., None]

CASES = {
    1: [[16, 4, 1, 1], [0, 0, 1, 1]],
    2: [[7, 3, 2, 1], [16, 16, 0, 0]],
    8: [[16, 4, 1, 1], [1, 1, 1, 1], [32, 0, 0, 2]],
}


@pytest.fixture(scope="module")
def identity_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A narrow network, quick to run; fresh, it is the identity: its last layer is zero."""
    path = tmp_path_factory.mktemp("weights") / "identity.safetensors"
    narrow = {"channels": (8, 8, 8), "encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1)}
    save_network(build_network("strcnn_dtb_lite", narrow), path)
    return str(path)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_any_order_gives_the_same_frames(isolated: Isolated, threads: int) -> None:
    isolated("toy_orders", threads=threads, cases=CASES[threads])


def test_filters_on_filters(isolated: Isolated) -> None:
    isolated("toy_nested", threads=2)


def test_any_order_with_the_trained_network(isolated: Isolated) -> None:
    isolated("lite_orders", threads=8)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_ends_within_any_memory_limit(isolated: Isolated, threads: int) -> None:
    isolated("memory_limits", threads=threads)


# A process takes seconds to start, so that light checks of one kind share one.
@pytest.mark.parametrize(
    "checks",
    [
        "short_clips",
        "chunks,linear_cost,seek_cost",
        "deep_seek",
        "influence,detector",
        "failing_step,failing_source",
        "late_properties,residency,non_finite",
        "no_strength,properties_matter",
        "released",
        "large_frames",
    ],
)
def test_check(isolated: Isolated, checks: str) -> None:
    isolated(checks)


def test_refused_when_created(isolated: Isolated, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"<html>not found</html>")
    isolated("refusals", damaged=str(damaged))


def test_frames_of_a_script(isolated: Isolated, tmp_path: Path) -> None:
    isolated("script_frames", folder=str(tmp_path))


@pytest.mark.parametrize("check", ["identity", "endurance", "environments"])
def test_with_an_engine_that_changes_nothing(
    isolated: Isolated, identity_weights: str, check: str
) -> None:
    isolated(check, weights=identity_weights)


@pytest.mark.parametrize("check", ["environments_at_once", "leaving"])
def test_requests_in_flight(isolated: Isolated, small_weights: Path, check: str) -> None:
    isolated(check, weights=str(small_weights))
