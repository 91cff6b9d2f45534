"""States are kept while they are recent, milestones, or wanted; never longer."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from vs_deblur.states import States, size_of


class Memory:
    """A state that can be watched."""


def _run(states: States, length: int) -> list[int]:
    for n in range(length):
        states.put((0, n), (n,))
    gc.collect()
    return [n for n in range(length) if states.is_filled((0, n))]


def test_recent_and_milestones_are_kept() -> None:
    assert _run(States(stride=8, keep=4), 60) == [24, 32, 40, 48, 56, 57, 58, 59]


def test_use_keeps_a_state() -> None:
    states = States(stride=100, keep=3)
    for n in range(1, 4):
        states.put((0, n), (n,))
    assert states.slot((0, 1)).state == (1,)
    states.put((0, 4), (4,))
    gc.collect()
    assert [n for n in range(5) if states.is_filled((0, n))] == [1, 3, 4]


def test_a_held_slot_is_filled_when_its_state_comes_and_never_lost() -> None:
    states = States(keep=2, stride=1000)
    slot = states.slot((0, 5))
    assert not slot.filled
    _run(states, 50)
    assert slot.filled
    assert slot.state == (5,)
    assert states.slot((0, 5)) is slot
    del slot
    gc.collect()
    assert not states.is_filled((0, 5))
    assert not states.slot((0, 5)).filled


def test_anchors_are_told_apart() -> None:
    states = States()
    states.put((0, 9), (1,))
    assert not states.is_filled((4, 9))
    states.put((4, 9), (2,))
    assert states.slot((0, 9)).state == (1,)
    assert states.slot((4, 9)).state == (2,)


def test_budget_holds_but_the_last_two_stay() -> None:
    states = States(stride=2, keep=10, budget=3000)
    for n in range(20):
        states.put((0, n), (np.zeros(1000, np.uint8),))
        states.put((0, n), (np.zeros(1000, np.uint8),))  # twice, counted once
    assert sum(states.is_filled((0, n)) for n in range(20)) == 3
    for n in range(20, 30):
        states.put((0, n), (np.zeros(9000, np.uint8),))
    assert [n for n in range(30) if states.is_filled((0, n))] == [28, 29]


def test_states_are_freed() -> None:
    states = States(keep=2, stride=1000)
    memory = Memory()
    watched = weakref.ref(memory)
    states.put((0, 1), (memory,))
    del memory
    _run(states, 10)
    assert watched() is None


def test_size_of_states() -> None:
    assert size_of((np.zeros((2, 3), np.float32), np.zeros(5, np.uint8))) == 29
    assert size_of(()) == 0
    assert size_of(None) == 0
