"""Opening a file with FFmpeg, and which stream of it is its video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vs_deblur.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# What FFmpeg may take a file for; sound alone is told from what is no video at all. It knows many
# more, among them lists of other files and addresses (concat, hls, dash, sdp …), which it would
# follow, whatever the file is called.
_FORMATS: Final = (
    "3g2 3gp aac ac3 aiff apng apv asf av1 avi avs2 avs3 bmp_pipe cavsvideo cine dirac dnxhd "
    "dpx_pipe dv evc exr_pipe flac flv gif gxf h261 h263 h264 hdr_pipe hevc image2 ivf j2k_pipe "
    "jpeg_pipe jpegxl_anim jpegxl_pipe live_flv lxf m4a m4v matroska mj2 mjpeg mlv mov mp3 mp4 "
    "mpeg mpegts mpegvideo mxf nsv nut nuv obu ogg pam_pipe pbm_pipe pgm_pipe png_pipe ppm_pipe "
    "pva qoi_pipe rm roq ser smk swf tiff_pipe ty vc1 vc1test vvc w64 wav webm webp_anim "
    "webp_pipe wtv yuv4mpegpipe"
)
_OPTIONS: Final = {
    "format_whitelist": ",".join(_FORMATS.split()),
    "protocol_whitelist": "file",
    "pattern_type": "none",  # a % in the name of a picture is a %
}


def open_input(path: str) -> InputContainer:
    """Open a file: that one, and nothing that is named in it, or that its name could stand for.

    Args:
        path: of the file.

    Raises:
        InputError: it is of a kind that is not read.
        av.error.FFmpegError, OSError: it cannot be opened.
    """
    import av

    try:
        return av.open(f"file:{path}", "r", options=dict(_OPTIONS))
    except av.error.ArgumentError as error:
        raise InputError(
            "not a video file of a kind that is read",
            path,
            "lists of other files are not; convert others to Matroska first",
        ) from error


def path_of(container: InputContainer) -> str:
    """The path with which a file was opened."""
    return container.name.removeprefix("file:")


def main_video(container: InputContainer) -> VideoStream:
    """The first video stream that is not a cover picture.

    Args:
        container: an open file.

    Raises:
        InputError: there is none, or no decoder for it.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise InputError("no decoder for its video", path_of(container))
            return stream
    raise InputError("there is no video in it", path_of(container))
