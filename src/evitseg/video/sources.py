"""Recognise video files, cameras and addresses, and limit what FFmpeg may open for them."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit

from evitseg.errors import ConfigError
from evitseg.raster.formats import EXTENSIONS as IMAGES

EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".wmv", ".asf"}
    | {".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".mxf", ".vob", ".dv", ".y4m", ".h264", ".264", ".hevc", ".h265", ".265"}
    | {".mjpeg", ".mjpg", ".ivf", ".obu", ".nut", ".qt", ".divx", ".mpe", ".m1v", ".mpv", ".rm", ".rmvb", ".wtv"}
)
"""Endings of video files."""
_BEGINNINGS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"\0\0\1\xba",  # MPEG program stream
    b"\0\0\1\xb3",  # MPEG video
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
    b"YUV4MPEG2",
    b"DKIF",  # IVF
    b"nut/multimedia container",
)
_IMAGE_BRANDS = (
    b"avif",
    b"avis",
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"mif1",
    b"msf1",
    b"crx ",
    b"jp2 ",
    b"jpx ",
)
"""Brands of image files with the same structure as MP4."""
_LOOKED_AT = 4 + 3 * 192
FILE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,ivf,obu,asf,flv,ogg,mxf,nut,"
    "gif,apng,dv,wtv,yuv4mpegpipe,mjpeg,rm,swf,vc1,live_flv"
)
"""Formats of files. Playlists and scripts are excluded, because FFmpeg would open any file that they refer to."""
LIVE = ("camera", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "mms", "mmsh")
"""Schemes of sources that do not wait for a slow reader. HTTP is live if it states no duration."""
_WEB = "http,https,httpproxy,tcp,tls,crypto"
_MEDIA = "rtp,srtp,udp,tcp,tls"
PROTOCOLS = {
    "http": _WEB,
    "https": _WEB,
    "rtsp": f"rtsp,{_MEDIA},http,https",
    "rtsps": f"rtsps,rtsp,{_MEDIA},http,https",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,rtmp,tcp,tls",
    "rtp": _MEDIA,
    "udp": "udp",
    "tcp": "tcp",
    "srt": "srt,udp",
    "mms": "mms,mmsh,mmst,tcp,http",
    "mmsh": "mmsh,tcp,http",
}
"""Protocols that FFmpeg may use for an address: never files, and playlists only on the web."""
_ADDRESS_FORMATS = f"{FILE_FORMATS},rtsp,sdp,rtp,mpjpeg"
CAMERAS = {
    #        format          name of camera n
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}:none"),
    "win32": ("dshow", "video={}"),
}
TIMEOUT_S = 10.0
"""Seconds that a network source or a camera may send nothing."""

VideoSource = str | PathLike[str]
"""A video: a file, "camera:0", or an address such as "rtsp://host/path"."""


def address_formats(scheme: str) -> str:
    """Formats allowed for an address. On the web these include playlists of live streams."""
    return f"{_ADDRESS_FORMATS},hls,dash" if PROTOCOLS[scheme] == _WEB else _ADDRESS_FORMATS


def check_address(source: str) -> None:
    """Raises: ConfigError for a malformed address or an unsupported scheme."""
    scheme, separator, _ = source.partition("://")
    scheme = scheme.lower()
    if not separator:
        return
    if scheme not in PROTOCOLS:
        advice = "give the path itself" if scheme == "file" else f"supported are {', '.join(PROTOCOLS)}"
        raise ConfigError(f"{redacted(source)}: {scheme}:// is not supported; {advice}.")
    try:
        whole = bool(urlsplit(source).netloc) and urlsplit(source).port != 0
    except ValueError as error:
        raise ConfigError(f"{redacted(source)}: not a valid address ({error}).") from error
    if not whole:
        raise ConfigError(f"{redacted(source)}: not a valid address; use the form {scheme}://HOST:PORT/PATH.")


def is_stream(source: str) -> bool:
    """Whether a source is a camera or an address, not a file."""
    address = re.match(r"[a-z][a-z0-9+.-]+://|camera:", source, re.IGNORECASE)
    return address is not None or re.fullmatch(r"/dev/video\d+", source) is not None


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its ending or its first bytes. Named pipes count as videos.

    A file with the ending of an image format never does.
    """
    ending = path.suffix.lower()
    if ending in EXTENSIONS or path.is_fifo():
        return True
    if ending in IMAGES or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return _begins_as_video(file.read(_LOOKED_AT))
    except OSError:
        return False  # reading it reports the error


def _begins_as_video(head: bytes) -> bool:
    if head[4:8] == b"ftyp":
        return head[8:12] not in _IMAGE_BRANDS
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    # Packets of MPEG-TS have 188 bytes, or 192 with a time stamp before each.
    if any(len(head) > at + 2 * size and head[at::size][:3] == b"GGG" for at, size in ((0, 188), (4, 192))):
        return True
    return head.startswith(_BEGINNINGS)


def stream_name(source: str) -> str:
    """A file name for the results of a stream, without user and password of an address."""
    name = re.sub(r"[^\w.-]+", "_", redacted(source).partition("://")[2] or source).strip("._")
    return name[:80] or "stream"


def redacted(source: VideoSource) -> str:
    """A source as it may be printed: an address without user, password and query, which may be secret."""
    text = str(source)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
