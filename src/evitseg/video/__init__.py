"""Videos and live streams: segment every frame, and write overlays, mask videos or PNGs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from evitseg.video.sources import EXTENSIONS, VideoSource, check_address, is_stream, is_video, stream_name

if TYPE_CHECKING:
    from evitseg.video.segment import VideoProgress, VideoResult, segment_video, write_video
    from evitseg.video.writers import VIDEO_KINDS, VideoKind, is_result

__all__ = [
    "EXTENSIONS", "VIDEO_KINDS", "VideoKind", "VideoProgress", "VideoResult", "VideoSource", "check_address",
    "is_result", "is_stream", "is_video", "segment_video", "stream_name", "write_video",
]  # fmt: skip

# Imported when they are used: most commands have no video, but ask whether a file is one.
_MODULES = {
    "segment": ("VideoProgress", "VideoResult", "segment_video", "write_video"),
    "writers": ("VIDEO_KINDS", "VideoKind", "is_result"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"evitseg.video.{module}"), name)
    raise AttributeError(f"module 'evitseg.video' has no attribute {name!r}")
