"""Derive the times of frames from a container's time stamps, so that they start at 0 and always increase."""

from __future__ import annotations

import heapq
import time
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

DEFAULT_RATE = Fraction(25)
"""Frames per second if a container states none; FFmpeg uses the same."""
HIGHEST_RATE = 1000
"""Frame rates above this are the rate of a clock, not of frames."""
_GOES_BACK_S, _JUMPS_S, _ABSURD_S = Fraction(1, 10), 10, 30 * 3600
"""A decoding time that is earlier than the last one by the first number of seconds starts a new count. So does one that
is later by the second number in broadcasts, or by the third in other files, whose time stamps may be damaged. FFmpeg
uses the same limits."""
_WITH_JUMPS = frozenset({"mpegts", "mpeg", "mpegtsraw"})
"""Formats of broadcasts, in which the time may jump at a splice."""
_DECODING_ONLY = "avi"
"""The format that stores decoding times but no presentation times."""
_MAX_REORDERED = 16 + 2
"""Packets that a decoder may hold back: H.264's limit and one per thread."""


def frame_rate(*stated: Fraction | None) -> Fraction:
    """The first plausible rate, in frames per second."""
    return next((rate for rate in stated if rate and 0 < rate <= HIGHEST_RATE), DEFAULT_RATE)


class Timeline:
    """Computes the times of packets and frames in seconds from the first frame.

    `continued` must see every packet in decoding order before it is decoded, and `place` every frame in presentation
    order.

    Three faults of containers are fixed. If the count starts again, as in concatenated files, it continues where the
    last one ended. If packets carry decoding times only (AVI), presentation times are derived from their order. If
    there are no times at all (raw H.264), frames follow each other at the frame rate.

    Attributes:
        rate: frames per second, for frames without a time.
        tick: smallest step between two frames, in seconds.
        offset: the first frame's time in the container, on the clock of its audio; None before the first frame and if
            frames have no times.
        ended_at: latest end of a packet, in the container's time.
        last: time of the last frame; None before the first.
        joined: whether the count started again, so that the container's duration is not that of the whole file.
    """

    def __init__(self, rate: Fraction, tick: Fraction, form: str, live: bool, reorders: bool) -> None:
        self.rate, self.tick, self.live = rate, tick, live
        self._first: Fraction | None = None
        self._lag = Fraction(0)
        self._decodes_only = form == _DECODING_ONLY
        self.ended_at = Fraction(0)
        self.last: Fraction | None = None
        self.joined = False
        # The time stamps of a live source are still right after a pause.
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
        """Shift a packet's times, in place, so that they continue where the last ones ended."""
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
                self._lag = packet.pts * packet.time_base - decoded  # FFmpeg adds the codec's delay
        if packet.pts is None:
            return
        packet.pts += ticks
        shown = packet.pts * packet.time_base
        if not packet.is_discard:
            duration = (packet.duration or 0) * packet.time_base or is_video / self.rate
            self.ended_at = max(self.ended_at, shown + duration)
        if is_video and self._waiting is not None and not packet.is_discard:
            if self._newest is not None and shown < self._newest:
                self._waiting = None  # presentation order differs from decoding order, so the times are real
            else:
                self._newest = shown
                heapq.heappush(self._waiting, shown)

    def lost(self, packet: av.Packet[Any]) -> None:
        """Forget a packet that could not be decoded into a frame."""
        if self._waiting and packet.pts is not None:
            shown = packet.pts * packet.time_base
            if shown in self._waiting:
                self._waiting.remove(shown)
                heapq.heapify(self._waiting)

    def place(self, image: av.VideoFrame) -> tuple[Fraction, Fraction]:
        """A frame's time and duration, in seconds."""
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
            # The time stamp repeats or goes back.
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
