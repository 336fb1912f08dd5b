"""Times of a video's frames, from whatever its container says: they begin at 0 and never go back."""

from __future__ import annotations

import heapq
import time
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

DEFAULT_RATE = Fraction(25)
"""Frames per second where a container says nothing, as FFmpeg has it."""
HIGHEST_RATE = 1000
"""A stated rate above this is a count of ticks, not of frames."""
_GOES_BACK_S, _JUMPS_S, _ABSURD_S = Fraction(1, 10), 10, 30 * 3600
"""A decoding time this far before the last one begins a new count; so does one that is this far after it: the first
number is for broadcasts, the second for all files, whose numbers may be damaged. FFmpeg has the same limits."""
_WITH_JUMPS = frozenset({"mpegts", "mpeg", "mpegtsraw"})
"""Formats of broadcasts, in which a splice may change the time to any other."""
_DECODING_ONLY = "avi"
"""A format that stores the order of decoding, and no times of showing."""
_MAX_REORDERED = 16 + 2
"""Packets that a decoder may hold back: H.264's limit, and one per thread."""


def frame_rate(*stated: Fraction | None) -> Fraction:
    """The first rate that can be one, in frames per second."""
    return next((rate for rate in stated if rate and 0 < rate <= HIGHEST_RATE), DEFAULT_RATE)


class Timeline:
    """Times of packets and frames in seconds from the first frame.

    Packets are shown to `continued` in decoding order before they are decoded, frames to `place` in the order in which
    they are shown.

    Three faults of containers are mended. A count that begins again, as in files that were joined, goes on where the
    last one ended. Where packets carry the order of decoding only (AVI), the times are put in order again. Where there
    are no times at all (raw H.264), frames follow each other at the rate.

    Attributes:
        rate: frames per second, for frames without a time.
        tick: the least step between two frames, in seconds.
        offset: the first frame's time in the container, as its audio tells time; None before it came, and where frames
            have no times.
        ended_at: the greatest end of a packet, in the container's time.
        last: the last frame's time; None before the first.
        joined: whether a count began again, so that the container's duration is of one part, or of nothing.
    """

    def __init__(self, rate: Fraction, tick: Fraction, form: str, live: bool, reorders: bool) -> None:
        self.rate, self.tick, self.live = rate, tick, live
        self._first: Fraction | None = None
        self._lag = Fraction(0)
        self._decodes_only = form == _DECODING_ONLY
        self.ended_at = Fraction(0)
        self.last: Fraction | None = None
        self.joined = False
        # After a pause of a live source its time is right.
        self._longest_s = None if live else _JUMPS_S if form in _WITH_JUMPS else _ABSURD_S
        self._shift = Fraction(0)
        self._decoding: dict[int, Fraction] = {}
        self._waiting: list[Fraction] | None = [] if reorders and not live else None
        self._newest: Fraction | None = None
        self._standing = 0

    @property
    def offset(self) -> Fraction | None:
        return None if self._first is None else self._first - self._lag

    def continued(self, packet: av.Packet[Any], is_video: bool) -> None:
        """Move a packet's times, in place, so that they go on where those before ended."""
        if packet.time_base is None:
            return
        if packet.dts is not None:
            now = packet.dts * packet.time_base + self._shift
            before = self._decoding.get(packet.stream_index)
            if before is not None and (
                now < before - _GOES_BACK_S or (self._longest_s and now > max(before, self.ended_at) + self._longest_s)
            ):
                begins = now if packet.pts is None else packet.pts * packet.time_base + self._shift
                self._shift += max(self.ended_at, before) - begins
                self._decoding.clear()
                self.joined = True
        ticks = round(self._shift / packet.time_base)
        if packet.dts is not None:
            packet.dts += ticks
            decoded = self._decoding[packet.stream_index] = packet.dts * packet.time_base
            if is_video and self._decodes_only and self._newest is None and packet.pts is not None:
                self._lag = packet.pts * packet.time_base - decoded  # which FFmpeg makes up, of the codec's delay
        if packet.pts is None:
            return
        packet.pts += ticks
        shown = packet.pts * packet.time_base
        if not packet.is_discard:
            duration = (packet.duration or 0) * packet.time_base or is_video / self.rate
            self.ended_at = max(self.ended_at, shown + duration)
        if is_video and self._waiting is not None and not packet.is_discard:
            if self._newest is not None and shown < self._newest:
                self._waiting = None  # an order of showing that differs from that of decoding: the times are real
            else:
                self._newest = shown
                heapq.heappush(self._waiting, shown)

    def lost(self, packet: av.Packet[Any]) -> None:
        """A packet gave no frame, and never will."""
        if self._waiting and packet.pts is not None:
            shown = packet.pts * packet.time_base
            if shown in self._waiting:
                self._waiting.remove(shown)
                heapq.heapify(self._waiting)

    def place(self, image: av.VideoFrame) -> tuple[Fraction, Fraction]:
        """A frame's time and how long it is shown, in seconds."""
        base = image.time_base or self.tick
        stated = self._stated(image, base)
        duration = (image.duration or 0) * base if image.pts is not None else Fraction(0)
        follows = Fraction(0) if self.last is None else self.last + 1 / self.rate
        if stated is None:
            at = follows
        else:
            if self._first is None:
                self._first = stated - follows
            at = stated - self._first
        if self.last is not None and at <= self.last:
            # Stamps that stand still, which no file can have, or go back.
            self._standing += 1
            if self._standing > 2 or at < self.last - _GOES_BACK_S:
                at = follows
                if stated is not None:
                    self._first = stated - at
            else:
                at = self.last + self.tick
        else:
            self._standing = 0
        self.last = at
        return at, duration or 1 / self.rate

    def _stated(self, image: av.VideoFrame, base: Fraction) -> Fraction | None:
        """A frame's time in the container."""
        if image.pts is None:
            return Fraction(time.monotonic()).limit_denominator(90_000) if self.live else None
        if not self._waiting:
            return image.pts * base
        while len(self._waiting) > _MAX_REORDERED:
            heapq.heappop(self._waiting)
        return heapq.heappop(self._waiting)
