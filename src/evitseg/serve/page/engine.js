// What makes the masks on this page: the service that the page comes from. `evitseg serve` puts this file in the place of
// the one with which the browser does the work itself.

import { EvitsegError } from "./evitseg/errors.js";
import { networkSize } from "./evitseg/model_file.js";
import { pngParts } from "./evitseg/png.js";
import { readPng } from "./read_png.js";

export const place = "server";

const KEY = "evitseg-key";
const CODES = { 400: "image", 413: "image", 415: "image", 503: "busy" };
const SMALLEST = 32;

let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Some settings forbid it; then the key is kept as long as the page is.
}

/** Send this API key from now on. The browser forgets it with the tab. */
export function useKey(given) {
  key = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // As above.
  }
}

/** Nothing has to be prepared. */
export async function prepare() {
  return false;
}

/** The service's model. Rejects with code "key" if the service wants an API key that it has not got. */
export async function open() {
  const answer = await ask("v1/model");
  return new ServiceModel(await answer.json());
}

async function ask(path, { headers = {}, ...settings } = {}) {
  if (!/^[!-~]*$/.test(key)) throw new EvitsegError("key", "an API key has only letters, digits and signs of ASCII");
  let answer;
  try {
    answer = await fetch(path, { ...settings, headers: { ...headers, ...(key && { Authorization: `Bearer ${key}` }) } });
  } catch (error) {
    if (settings.signal?.aborted) throw new EvitsegError("aborted", "the request was aborted");
    if (!(await isReadable(settings.body))) throw new EvitsegError("image", "the file has changed or is gone; open it again");
    throw new EvitsegError("service", `the service does not answer (${error.message}); check that it runs, and the connection to it`);
  }
  if (answer.ok) return answer;
  if (answer.status === 401) throw new EvitsegError("key", key ? "the service does not accept this API key" : "this service needs an API key");
  // A proxy between here and the service may answer with something else.
  const { detail = `the service answered with status ${answer.status}.`, remedy = "" } = await answer.json().catch(() => ({}));
  const retryAfter = Number(answer.headers.get("Retry-After"));
  const advice = retryAfter ? `Try again in ${retryAfter} s.` : remedy;
  throw Object.assign(new EvitsegError(CODES[answer.status] ?? "service", `${detail} ${advice}`.trim()), { retryAfter: retryAfter || 1 });
}

/** Whether a body can still be read; files on a disk may change. */
async function isReadable(body) {
  try {
    await body?.slice(-1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

/** What the page needs of a model, as the library's `Model` has it. */
class ServiceModel {
  #limit;
  #encoder = null;

  constructor({ name, classes, engine, size, limits, manifest }) {
    this.name = name;
    this.classes = classes.map(({ id, name: label, color }) => ({ index: id, name: label, color }));
    // The service may have a size of its own, which then is the rule.
    const rule = size === null ? {} : { short_side: size === "native" ? null : size, max_enlarge: Infinity };
    this.manifest = { ...manifest, preprocess: { ...manifest.preprocess, ...rule } };
    this.info = { engine: `${engine.name}, ${engine.precision}`, threads: engine.threads };
    this.verification = null;
    this.#limit = limits.bytes;
  }

  networkSize(width, height, size = null) {
    return networkSize(this.manifest.preprocess, width, height, size);
  }

  /** Segment a file, or a frame, which is taken away and closed. */
  async segment(image, { size = null, signal = null } = {}) {
    const start = performance.now();
    const body = image instanceof Blob ? image : await this.#encoded(image);
    const answer = await this.#post(body, "application/json", { mask: "png", ...(size !== null && { size }) }, signal);
    const { image: { width, height }, classes, mask: { data }, timing_ms: stages, warnings } = await answer.json();
    const { mask, compressed } = await readPng(Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)));
    const pixels = new Array(this.classes.length).fill(0);
    for (const { id, pixels: count } of classes) pixels[id] = count;
    const network = this.networkSize(width, height, size);
    return {
      mask, compressed, width, height, pixels, warnings,
      networkWidth: network.width,
      networkHeight: network.height,
      milliseconds: { ...stages, total: performance.now() - start },
    };
  }

  /** The image of a file that this browser does not know, such as a TIFF: as a JPEG, without a mask. */
  async converted(file, signal = null) {
    const size = this.manifest.preprocess.fixed ? {} : { size: SMALLEST }; // the mask is not wanted
    const answer = await this.#post(file, "image/jpeg", { opacity: 0, legend: false, ...size }, signal);
    return answer.blob();
  }

  /** The mask as a PNG, with what the service has compressed. */
  async png({ mask, width, height, compressed }, format = "palette") {
    const colors = format === "palette" ? this.classes.map(({ color }) => color) : null;
    return new Blob(pngParts(mask, width, height, colors, () => compressed), { type: "image/png" });
  }

  #post(body, accept, query, signal) {
    // The service would close the connection before it has been told the rest, which browsers report as no answer at all.
    if (body.size > this.#limit) {
      const [bytes, most] = [body.size, this.#limit].map((value) => (value / 2 ** 20).toFixed(1));
      throw new EvitsegError("image", `the file has ${bytes} MiB, and the service accepts ${most} MiB; shrink or compress the image`);
    }
    const headers = { Accept: accept, "Content-Type": "application/octet-stream" };
    return ask(`v1/segment?${new URLSearchParams(query)}`, { method: "POST", body, headers, signal });
  }

  /** A JPEG of a frame. */
  #encoded(frame) {
    this.#encoder ??= new Worker(new URL("./frames.js", import.meta.url));
    return new Promise((resolve, reject) => {
      const failed = () => reject(new EvitsegError("worker", "this browser cannot make a JPEG file of a frame; update it"));
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = ({ data }) => {
        port1.close();
        if (data) resolve(data);
        else failed();
      };
      this.#encoder.onerror = failed;
      this.#encoder.postMessage({ frame, port: port2 }, [frame, port2]);
    });
  }
}
