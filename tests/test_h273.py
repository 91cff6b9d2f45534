"""Every host reads the numbers of H.273, and guesses where there is none, in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
from av.stream import Disposition

from tests.films import Film
from vs_deblur.avpixels import Colour, layout
from vs_deblur.avstreams import main_video
from vs_deblur.errors import InputError
from vs_deblur.h273 import MATRICES, UNSPECIFIED, guessed_matrix
from vs_deblur.hosts import video, y4m
from vs_deblur.vspixels import frame_format


def _in_a_script(matrix: int, height: int) -> str:
    return frame_format("YUV", 8, False, (1, 1), height, {"_Matrix": matrix}).matrix


def _in_a_file(matrix: int, height: int) -> str:
    colour = Colour(matrix=matrix)
    return video._pixel_format(layout("yuv420p"), colour, height, "x").matrix


@pytest.mark.parametrize("height", [32, 719, 720, 2160])
def test_hosts_guess_alike(height: int) -> None:
    guesses = {
        _in_a_script(UNSPECIFIED, height),
        _in_a_file(UNSPECIFIED, height),
        y4m.Header(48, height).pixel_format().matrix,
    }
    assert guesses == {guessed_matrix(height)} == {"709" if height >= 720 else "601"}


@pytest.mark.parametrize("number", [*MATRICES, 8, 10, 11, 12, 13, 14])
def test_hosts_read_a_number_alike(number: int) -> None:
    if number in MATRICES:
        assert _in_a_script(number, 32) == _in_a_file(number, 32) == MATRICES[number]
        return
    for read in (_in_a_script, _in_a_file):
        with pytest.raises(InputError, match=str(number)):
            read(number, 32)


def test_the_main_video_is_the_first_that_is_no_cover(tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    source = Film("libx264").write(tmp_path / "film.mp4")
    cover = Film("mjpeg", "yuvj420p", frames=1).write(tmp_path / "cover.mkv")
    with (
        av.open(str(cover)) as picture,
        av.open(str(source)) as film,
        av.open(str(path), "w") as both,
    ):
        for found, kind in ((picture, Disposition.attached_pic), (film, Disposition.default)):
            copy = both.add_stream_from_template(found.streams.video[0], opaque=True)
            copy.disposition = kind.value  # type: ignore[assignment]
        copies: list[Any] = list(both.streams)
        for found, target in zip((picture, film), copies, strict=True):
            for packet in found.demux(found.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = target
                    both.mux(packet)
    with av.open(str(path)) as opened:
        kinds = [bool(s.disposition & Disposition.attached_pic) for s in opened.streams.video]
        assert sorted(kinds) == [False, True]
        assert main_video(opened).index == opened.streams.video[kinds.index(False)].index
    assert len(list(video.open_video(path).frames())) == 8


def test_a_file_without_video_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="stereo", samples=800)
        frame.sample_rate = 8000
        output.mux([*stream.encode(frame), *stream.encode(None)])
    with av.open(str(path)) as opened, pytest.raises(InputError) as caught:
        main_video(opened)
    assert caught.value.where == str(path)
