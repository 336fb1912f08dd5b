// @evitseg/web: semantic segmentation in the browser. The network runs in a worker, in WebAssembly; nothing is uploaded.
import { simdHere } from "./core.js";
import { EvitsegError } from "./errors.js";
import { networkSize } from "./model_file.js";

export { EvitsegError };
export { isolate } from "./isolate.js";

const MOST_THREADS = 4; // by default: phones have few fast cores, and a page needs some time, too

/**
 * Loads a model that `evitseg export MODEL --to web` wrote. See index.d.ts for all options.
 *
 * @param {string | URL} url of the .evit file
 */
export async function load(url, { threads = "auto", check = null, simd = "auto", progress = null, signal = null } = {}) {
  const here = simdHere();
  if (here === null || typeof Worker === "undefined" || typeof OffscreenCanvas === "undefined")
    throw new EvitsegError("unsupported", "this browser is too old (it needs WebAssembly SIMD and OffscreenCanvas); update it");
  if (!["auto", "relaxed", "plain"].includes(simd) || (simd === "relaxed" && here !== "relaxed"))
    throw new EvitsegError(simd === "relaxed" ? "unsupported" : "argument", `simd "${simd}" is not available; use "auto"`);
  if (threads !== "auto" && !(Number.isInteger(threads) && threads >= 1 && threads <= 64))
    throw new EvitsegError("argument", `threads is ${threads}; it must be "auto" or 1 to 64`);
  // WebKitGTK 2.50 isolates pages, but has no memory that threads could share.
  const isolated = globalThis.crossOriginIsolated === true && typeof SharedArrayBuffer === "function";
  const cores = navigator.hardwareConcurrency || 1;
  const shared = isolated && threads !== 1;
  const request = {
    modelUrl: absolute(url, "the .evit file"),
    checkUrl: check === null ? null : absolute(check, "the model.check file"),
    folder: new URL("./", import.meta.url).href,
    shared,
    threads: !shared ? 1 : threads === "auto" ? Math.min(cores, MOST_THREADS) : threads,
  };
  // A device that computes wrongly with relaxed SIMD may be right without it.
  const tries = simd === "auto" ? (here === "relaxed" ? ["relaxed", "plain"] : ["plain"]) : [simd];
  for (const attempt of tries) {
    const connection = new Connection();
    try {
      const { manifest, threads: used, verification } = await connection.ask("load", { ...request, simd: attempt }, [], signal, progress);
      if (verification === null || verification.passed) {
        const info = { instructionSet: attempt === "relaxed" ? "relaxed SIMD" : "SIMD", threads: used, isolated, cores };
        return new Model(connection, manifest, info, verification);
      }
      if (attempt === tries.at(-1))
        throw new EvitsegError(
          "verification",
          "this device computes other numbers than the model's authors, so its masks would be wrong; try another browser",
          verification,
        );
    } catch (error) {
      connection.close();
      throw error;
    }
    connection.close();
  }
  return null; // not reached
}

function absolute(url, of) {
  try {
    return new URL(url, globalThis.document?.baseURI ?? location.href).href;
  } catch {
    throw new EvitsegError("argument", `"${url}" is not a URL; give the address of ${of}`);
  }
}

/** Requests to a worker, and its answers. */
class Connection {
  #worker;
  #waiting = new Map();
  #next = 0;
  #closed = null;

  constructor() {
    this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => this.#answer(data);
    this.#worker.onerror = (event) => {
      event.preventDefault?.();
      const reason = event.message ? ` (${event.message})` : "";
      this.#end(new EvitsegError("worker", `the network's worker failed${reason}; load the model again`));
    };
  }

  #answer({ id, result, error, progress }) {
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return; // aborted
    if (progress !== undefined) {
      waiting.progress?.(progress);
      return;
    }
    this.#waiting.delete(id);
    waiting.stop();
    if (error === undefined) waiting.resolve(result);
    else waiting.reject(new EvitsegError(error.code, error.message));
  }

  /** Sends a request of a kind; `moved` are objects that the worker owns from then on. */
  ask(kind, content = {}, moved = [], signal = null, progress = null) {
    return new Promise((resolve, reject) => {
      if (this.#closed) throw this.#closed;
      const cancelled = () => new EvitsegError("aborted", "the request was aborted");
      if (signal?.aborted) throw cancelled();
      const id = this.#next++;
      const abort = () => {
        this.#waiting.delete(id);
        this.#worker.postMessage({ id, kind: "abort" });
        reject(cancelled());
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#waiting.set(id, { resolve, reject, progress, stop: () => signal?.removeEventListener("abort", abort) });
      try {
        this.#worker.postMessage({ ...content, id, kind }, moved);
      } catch (error) {
        this.#waiting.delete(id);
        signal?.removeEventListener("abort", abort);
        throw new EvitsegError("image", `this image cannot be given to the worker (${error.message}); it may be closed already`);
      }
    });
  }

  close() {
    this.#end(new EvitsegError("closed", "the model was closed; load it again"));
  }

  #end(error) {
    this.#closed ??= error;
    this.#worker.terminate();
    for (const { reject, stop } of this.#waiting.values()) {
      stop();
      reject(error);
    }
    this.#waiting.clear();
  }
}

/** A loaded model. */
class Model {
  #connection;

  constructor(connection, manifest, info, verification) {
    this.#connection = connection;
    this.manifest = manifest;
    this.name = manifest.name;
    this.classes = manifest.labels.classes.map(({ name, color }, index) => ({ index, name, color }));
    this.info = info;
    this.verification = verification;
  }

  networkSize(width, height, size = null) {
    return networkSize(this.manifest.preprocess, width, height, size);
  }

  async segment(image, { size = null, signal = null } = {}) {
    const [sent, moved] = await message(image);
    try {
      return await this.#connection.ask("segment", { image: sent, size }, moved, signal);
    } catch (error) {
      for (const each of moved) each.close(); // it was given away, even if it has not left this thread
      throw error;
    }
  }

  async verify() {
    this.verification = await this.#connection.ask("verify");
    return this.verification;
  }

  async png({ mask, width, height }, format = "palette") {
    if (format !== "palette" && format !== "gray") throw new EvitsegError("argument", `format "${format}" is unknown; use "palette" or "gray"`);
    const colors = format === "palette" ? this.classes.map(({ color }) => color) : null;
    return this.#connection.ask("png", { mask, width, height, colors });
  }

  async setThreads(threads) {
    if (!(Number.isInteger(threads) && threads >= 1 && threads <= 64)) throw new EvitsegError("argument", `threads is ${threads}; it must be 1 to 64`);
    this.info.threads = await this.#connection.ask("setThreads", { threads });
    return this.info.threads;
  }

  /** Milliseconds of each operation, for `benchmarks/web.py`. */
  profile(image, runs, operations) {
    return this.#connection.ask("profile", { image, runs, operations });
  }

  close() {
    this.#connection.close();
  }
}

/** An image as a message can carry it, and what of it moves to the worker. */
async function message(image) {
  const is = (name) => globalThis[name] !== undefined && image instanceof globalThis[name];
  if (is("ImageBitmap") || is("VideoFrame")) return [image, [image]];
  if (is("Blob")) return [image, []];
  if (["HTMLImageElement", "HTMLCanvasElement", "HTMLVideoElement", "OffscreenCanvas", "SVGImageElement"].some(is)) {
    try {
      const bitmap = await createImageBitmap(image);
      return [bitmap, [bitmap]];
    } catch (error) {
      throw new EvitsegError("image", `the pixels of this element cannot be read (${error.message}); wait until it has loaded`);
    }
  }
  if (ArrayBuffer.isView(image?.data)) {
    if (image.data.BYTES_PER_ELEMENT !== 1)
      throw new EvitsegError("argument", `pixels must be bytes, 0 to 255, not a ${image.data.constructor.name}; give a Uint8Array`);
    return [{ data: image.data, width: image.width, height: image.height }, []];
  }
  throw new EvitsegError("argument", "this is not an image; give an ImageData, a file, an ImageBitmap, a VideoFrame or an element");
}
