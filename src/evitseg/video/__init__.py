"""Videos and live streams: segment every frame, and write overlays, mask videos or PNGs."""

from __future__ import annotations

from evitseg.video.segment import VideoProgress, VideoResult, segment_video, write_video
from evitseg.video.sources import EXTENSIONS, VideoSource, check_address, is_stream, is_video, stream_name
from evitseg.video.writers import VIDEO_KINDS, VideoKind, is_result

__all__ = [
    "EXTENSIONS", "VIDEO_KINDS", "VideoKind", "VideoProgress", "VideoResult", "VideoSource", "check_address",
    "is_result", "is_stream", "is_video", "segment_video", "stream_name", "write_video",
]  # fmt: skip
