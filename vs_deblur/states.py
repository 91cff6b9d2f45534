"""The states of a recurrence, kept for hosts that ask for frames in any order."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any
from weakref import WeakValueDictionary

Key = tuple[int, int]
"""Anchor of the recurrence, and the frame after whose step the state holds."""


class Slot:
    """The place of one state. Whoever holds a slot has the state, now or as soon as it is there.

    Attributes:
        filled: whether the state is there.
        state: what the step returned.
    """

    __slots__ = ("__weakref__", "filled", "state")

    def __init__(self) -> None:
        self.filled = False
        self.state: Any = None


def size_of(state: Any) -> int:
    """Bytes of a state (a tuple of tensors or arrays)."""
    return sum(getattr(part, "nbytes", 0) for part in state) if isinstance(state, tuple) else 0


class States:
    """States by key: the last few are kept, and those that somebody waits for are never lost.

    A slot that is asked for before its state exists is filled when it does, as long as the asker
    still holds it. When he lets go of it (done, failed or cancelled, it does not matter) it is
    gone: there is nothing to give back. Threads may call at the same time.

    Besides the last states, milestones are kept, from which a seek backwards starts.

    Args:
        stride: states after frames that are multiples of this are milestones.
        keep: states, and milestones, that are kept though nobody holds their slots.
        budget: bytes that these may take; the last two are kept whatever their size.
    """

    def __init__(self, stride: int = 8, keep: int = 10, budget: int = 512 << 20) -> None:
        self.stride, self.keep, self.budget = stride, keep, budget
        self._slots: WeakValueDictionary[Key, Slot] = WeakValueDictionary()
        self._recent: OrderedDict[Key, Slot] = OrderedDict()  # latest use last
        self._milestones: OrderedDict[Key, Slot] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def slot(self, key: Key) -> Slot:
        """The slot of a key, filled or not."""
        with self._lock:
            for kept in (self._recent, self._milestones):
                if key in kept:
                    kept.move_to_end(key)
            return self._slot(key)

    def is_filled(self, key: Key) -> bool:
        """Whether the state is there."""
        slot = self._slots.get(key)
        return slot is not None and slot.filled

    def put(self, key: Key, state: Any) -> None:
        """Fill the slot of a key."""
        with self._lock:
            for kept in (self._recent, self._milestones):
                if key in kept:
                    self._bytes -= size_of(kept.pop(key).state)
            slot = self._slot(key)
            slot.state, slot.filled = state, True
            self._recent[key] = slot
            self._bytes += size_of(state)
            self._let_go()

    def _slot(self, key: Key) -> Slot:
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = Slot()
        return slot

    def _let_go(self) -> None:
        recent, milestones = self._recent, self._milestones
        while len(recent) > self.keep or (self._bytes > self.budget and len(recent) > 2):
            key, slot = recent.popitem(last=False)
            if key[1] % self.stride == 0:
                milestones[key] = slot
            else:
                self._bytes -= size_of(slot.state)
        while len(milestones) > self.keep or (self._bytes > self.budget and milestones):
            _, slot = milestones.popitem(last=False)
            self._bytes -= size_of(slot.state)
