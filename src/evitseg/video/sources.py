"""What a video may be read from: files, cameras and addresses, by their names."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit

EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".wmv", ".asf"}
    | {".flv", ".f4v", ".ogv", ".3gp", ".mxf", ".vob", ".dv", ".y4m", ".h264", ".hevc"}
)
"""By which a video is known among other files."""
FILE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,ivf,obu,asf,flv,ogg,mxf,nut,"
    "gif,apng,dv,wtv,yuv4mpegpipe,mjpeg,rm,swf,vc1,live_flv"
)
"""What a file may be inside: no play lists and scripts, which would have FFmpeg open whatever they name."""
LIVE = ("camera", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "mms", "mmsh")
"""Schemes of sources that do not wait for a slow reader; http is live where it says no duration."""
CAMERAS = {
    #        format          name of camera n
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}:none"),
    "win32": ("dshow", "video={}"),
}
TIMEOUT_S = 10.0
"""How long a network or a camera may be silent."""

Source = str | PathLike[str]
"""A file; "camera:0"; or an address such as "rtsp://host/path"."""


def is_stream(source: str) -> bool:
    """Whether this names a camera or an address, not a file."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*://|camera:", source)) or re.fullmatch(r"/dev/video\d+", source) is not None


def is_video(path: Path) -> bool:
    """Whether this file is taken for a video: by its ending, or because it is a named pipe."""
    return path.suffix.lower() in EXTENSIONS or path.is_fifo()


def stream_name(source: str) -> str:
    """What the results of a stream are called; without the password that an address may hold."""
    parts = urlsplit(told(source))
    name = re.sub(r"[^\w.-]+", "_", parts.netloc + parts.path if parts.netloc else source).strip("._")
    return name[:80] or "stream"


def told(source: Source) -> str:
    """A source as it may be printed: an address without user, password and query, which may hold a key."""
    text = str(source)
    if "://" not in text:
        return text
    parts = urlsplit(text)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
