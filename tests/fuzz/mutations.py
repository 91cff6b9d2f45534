"""Inputs for the fuzz tests: valid ones that were changed, and plain bytes."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

_SIZES = (1, 2, 4, 8)  # bytes of an integer
_LIES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1)
# Most of what can be told wrongly stands near the beginning.
_NEAR = st.sampled_from((1.0, 1.0, 0.2, 0.03))


@st.composite
def _places(draw: st.DrawFn, length: int) -> int:
    return int(draw(st.floats(0, 1)) * draw(_NEAR) * length)


@cache
def valid(name: str) -> tuple[bytes, ...]:
    """Valid inputs of a target; to make some of them takes longer than to look at one."""
    return tuple(TARGETS[name].seeds())


@st.composite
def inputs(draw: st.DrawFn, name: str) -> bytes:
    """Bytes for a target: in one of eight cases any, else a valid input with up to six changes."""
    if draw(st.integers(0, 7)) == 0:
        return draw(st.binary(max_size=400))
    target, seeds = TARGETS[name], valid(name)
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(_places(len(data)))
        end = at + draw(st.integers(0, 40))
        kind = draw(
            st.sampled_from(("set", "lie", "cut", "end", "insert", "token", "twice", "join"))
        )
        if kind == "set":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif kind == "lie":
            size = draw(st.sampled_from(_SIZES))
            value = draw(st.sampled_from(_LIES)) % (1 << 8 * size)
            order = draw(st.sampled_from(("little", "big")))
            data = data[:at] + value.to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]
        elif kind == "cut":
            data = data[:at] + data[end:]
        elif kind == "end":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + draw(st.binary(max_size=16)) + data[at:]
        elif kind == "token" and target.tokens:
            over = draw(st.booleans())
            token = draw(st.sampled_from(target.tokens))
            data = data[:at] + token + data[at + over * len(token) :]
        elif kind == "twice":
            data = data[:end] + data[at:]
        elif kind == "join":
            other = draw(st.sampled_from(seeds))
            data = data[:at] + other[draw(_places(len(other))) :]
    if target.seal is not None and draw(st.integers(0, 3)):
        data = target.seal(data)
    return data
