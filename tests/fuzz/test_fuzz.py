"""Any bytes, given to any parser of ours: success or one clear line, in bounded memory.

Few inputs for each, so that it can run with every change; ``python -m tests.fuzz.guided`` goes on
for as long as one likes, led by coverage. What was found by either is in ``test_found.py``.
"""

from __future__ import annotations

import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import inputs, valid
from tests.fuzz.targets import TARGETS, check

# About two seconds each.
EXAMPLES = dict.fromkeys(TARGETS, 200) | {
    "y4m_header": 400,
    "y4m_stream": 400,
    "bridge_frame": 400,
    "journal": 400,
    "wholeness": 400,
    "weights_file": 100,
    "weights_header": 100,
    "manifest": 60,
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_hold(name: str) -> None:
    for seed in TARGETS[name].seeds():
        check(TARGETS[name], seed)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_end_well_or_in_one_line(name: str) -> None:
    target = TARGETS[name]
    valid(name)

    @settings(
        max_examples=EXAMPLES[name],
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(target, data.draw(inputs(name), label="input"))

    run()
