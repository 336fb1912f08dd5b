// Frames of a camera or a video file: one is segmented at a time, and the newest comes next.

import { pause } from "./parts.js";

const RATE = 10; // masks per second that the automatic size aims at
const LADDER = [1024, 720, 512, 384, 256, 192, 128];
const RECENT = 9;
const MOST_WAITED_S = 5;
const UNTOLD_MS = 250; // without word of a first frame, it is looked for
const LOOK_MS = 20;

export function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

/** The size of the network's input that is fast enough on this device, found while frames are segmented. */
export class AutomaticSize {
  /** `largest`: the model's own short side. */
  constructor(largest) {
    this.sizes = [largest, ...LADDER.filter((size) => size < largest)];
    this.at = 0;
    this.recent = [];
  }

  get size() {
    return this.sizes[this.at];
  }

  /** Take note of the milliseconds that a mask took, and choose the size of the next. */
  took(milliseconds) {
    this.recent.push(milliseconds);
    if (this.recent.length < RECENT) return;
    const usual = median(this.recent);
    this.recent = [];
    const aim = 1000 / RATE;
    const larger = this.at > 0 && usual * (this.sizes[this.at - 1] / this.size) ** 2;
    if (usual > aim && this.at < this.sizes.length - 1) this.at++;
    else if (larger && larger < 0.6 * aim) this.at--; // well below the aim, so that it does not swing
  }
}

/** Times of the masks of a camera or video. */
export class Times {
  constructor() {
    this.shown = [];
    this.ages = [];
    this.network = [];
    this.whole = [];
  }

  add(captured, milliseconds) {
    const now = performance.now();
    this.shown.push(now);
    this.ages.push(now - captured);
    this.network.push(milliseconds.network);
    this.whole.push(milliseconds.total);
    for (const values of [this.ages, this.network, this.whole]) if (values.length > 15) values.shift();
    while (this.shown[0] < now - 2000) this.shown.shift();
  }

  get perSecond() {
    const span = this.shown.at(-1) - this.shown[0];
    return span ? (1000 * (this.shown.length - 1)) / span : null;
  }
}

/** Frames of a video as they arrive, until the signal aborts. */
class Arrivals {
  constructor(video, signal) {
    this.video = video;
    this.signal = signal;
    this.seen = null; // time in the video of the last frame
    this.isTold = false; // whether the browser has ever told of a frame
  }

  /** Resolves at the next frame, with the time of its arrival; rejects when the signal aborts. */
  next() {
    const { video, signal } = this;
    const canTell = "requestVideoFrameCallback" in video;
    return new Promise((resolve, reject) => {
      let call, timer;
      const end = () => {
        if (canTell) video.cancelVideoFrameCallback(call);
        clearInterval(timer);
        signal.removeEventListener("abort", ended);
      };
      const found = () => {
        end();
        this.seen = video.currentTime;
        resolve(performance.now());
      };
      const ended = () => {
        end();
        reject(signal.reason);
      };
      const look = () => {
        if (video.readyState >= video.HAVE_CURRENT_DATA && !video.seeking && video.currentTime !== this.seen) found();
      };
      if (signal.aborted) return reject(signal.reason);
      signal.addEventListener("abort", ended, { once: true });
      if (canTell) {
        call = video.requestVideoFrameCallback(() => {
          this.isTold = true;
          found();
        });
      }
      // WebKitGTK 2.50 has the callback and may never call it.
      if (!this.isTold) timer = setInterval(look, canTell && this.seen === null ? UNTOLD_MS : LOOK_MS);
    });
  }
}

/** Segment frames of a video until the signal aborts.
 *
 * `sizeOf` gives {width, height} of the network's input for a frame; `shown` gets each result and its time of capture, and
 * `waits` the error of a service that is busy, which gets the next frame a little later.
 */
export async function segmentFrames(video, model, sizeOf, shown, waits, signal) {
  const arrivals = new Arrivals(video, signal);
  while (!signal.aborted) {
    let captured;
    try {
      captured = await arrivals.next();
    } catch {
      return;
    }
    if (!video.videoWidth) continue;
    const { width, height } = sizeOf(video.videoWidth, video.videoHeight);
    // The browser resizes the frame, outside of this thread; the model takes the bitmap away and closes it.
    const frame = await createImageBitmap(video, { resizeWidth: width, resizeHeight: height, resizeQuality: "medium" });
    if (signal.aborted) return frame.close();
    let result;
    try {
      result = await model.segment(frame, { size: model.manifest.preprocess.fixed ? null : "native", signal });
    } catch (error) {
      if (error.code !== "busy" || signal.aborted) throw error;
      waits(error);
      await pause(1000 * Math.min(error.retryAfter, MOST_WAITED_S));
      continue;
    }
    if (!signal.aborted) shown(result, captured);
  }
}

/** The camera, from `open` to `close`. */
export class Camera {
  constructor(video) {
    this.video = video;
    this.stream = null;
    this.turn = 0;
    this.facing = "environment"; // the rear camera of a phone
    this.devices = [];
    this.device = null;
  }

  get isOpen() {
    return this.stream !== null;
  }

  /** Whether the camera looks at the person in front of the screen. */
  get isFront() {
    return this.stream?.getVideoTracks()[0].getSettings().facingMode === "user";
  }

  /** `ended` is called if the camera is disconnected. */
  async open(ended) {
    this.close();
    const turn = this.turn;
    const wanted = this.device ? { deviceId: { exact: this.device } } : { facingMode: { ideal: this.facing } };
    this.device = null; // if this one is gone, the next attempt takes any
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: false,
      video: { ...wanted, width: { ideal: 1280 }, height: { ideal: 720 } },
    });
    if (turn !== this.turn) { // it was closed while the person was asked
      for (const track of stream.getTracks()) track.stop();
      throw new DOMException("closed", "AbortError");
    }
    this.stream = stream;
    const track = stream.getVideoTracks()[0];
    track.addEventListener("ended", () => {
      if (this.stream === stream) ended();
    });
    this.device = track.getSettings().deviceId ?? null;
    this.video.srcObject = stream;
    await this.video.play();
    const all = await navigator.mediaDevices.enumerateDevices();
    this.devices = all.filter(({ kind }) => kind === "videoinput").map(({ deviceId }) => deviceId);
  }

  /** Choose the next camera, which `open` opens. */
  next() {
    const place = this.devices.indexOf(this.device);
    this.device = this.devices[(place + 1) % this.devices.length] ?? null;
  }

  close() {
    this.turn++;
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.video.srcObject = null;
  }
}
