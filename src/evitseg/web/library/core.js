// The core as WebAssembly: which of its builds a browser can run, and its C interface (core/include/evitseg.h) as methods.
import { EvitsegError } from "./errors.js";

// Modules that only browsers with an instruction accept: of SIMD, and of relaxed SIMD (a fused multiply-add).
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];
const RELAXED = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 19, 1, 17, 0, 65, 1, 253, 15, 65, 2, 253, 15, 65, 3, 253,
  15, 253, 133, 2, 11,
];
const accepts = (bytes) => WebAssembly.validate(new Uint8Array(bytes));

/** The instructions that this browser has: "relaxed", "plain", or null for none that the core can use. */
export function simdHere() {
  if (typeof WebAssembly !== "object" || !accepts(SIMD)) return null;
  return accepts(RELAXED) ? "relaxed" : "plain";
}

/** Name of the file with the core for these instructions, with or without threads. */
export function coreFile(simd, threads) {
  return `core${simd === "relaxed" ? "-relaxed" : ""}${threads ? "-threads" : ""}.wasm`;
}

const PAGE = 1 << 16;
// Address space for threads, which must be reserved: the first of these that the browser gives.
const SHARED_MIB = [1024, 512, 256];
const STACK = 1 << 20;

/** Memory that several instances of the core share. */
export function sharedMemory() {
  for (const mib of SHARED_MIB) {
    try {
      return new WebAssembly.Memory({ initial: 32, maximum: (mib << 20) / PAGE, shared: true });
    } catch (error) {
      if (!(error instanceof RangeError) || mib === SHARED_MIB.at(-1)) throw error;
    }
  }
  return null;
}

/** Runs a thread of the core's pool, as `startThread` of a core was asked to, until the pool ends; calls `begins` first. */
export function runThread({ module, memory, argument, stack }, begins = () => {}) {
  const imports = { env: { memory }, evitseg: { now: () => performance.now(), start: () => 0 } };
  const { exports } = new WebAssembly.Instance(module, imports);
  exports.__stack_pointer.value = stack;
  begins();
  exports.evs_thread(argument);
}

/** One instance of the core, on the thread that made it. */
export class Core {
  #exports;
  #memory;
  #module;
  #stacks = [];

  /**
   * @param {WebAssembly.Module} module
   * @param {WebAssembly.Memory | null} memory shared by the threads, for a module that has them
   * @param {(thread: { module, memory, argument, stack }) => void} startThread starts `runThread` elsewhere
   */
  static async create(module, memory = null, startThread = null) {
    const core = new Core();
    core.#module = module;
    const start = (argument) => {
      let stack;
      try {
        stack = core.allocate(STACK);
      } catch {
        return 0; // there is one thread less; an exception must not pass through the core
      }
      core.#stacks.push(stack);
      startThread({ module, memory, argument, stack: stack + STACK });
      return 1;
    };
    const imports = { evitseg: { now: () => performance.now(), start }, ...(memory !== null && { env: { memory } }) };
    core.#exports = (await WebAssembly.instantiate(module, imports)).exports;
    core.#memory = memory ?? core.#exports.memory;
    return core;
  }

  get bytes() {
    return this.#memory.buffer.byteLength;
  }

  // Views of the memory, made anew: its buffer is another one after it has grown.
  #view(Type, at, length) {
    return new Type(this.#memory.buffer, at, length);
  }

  /** A copy of the numbers at an address, for other threads. */
  copied(Type, at, length) {
    return this.#view(Type, at, length).slice();
  }

  #text(at) {
    const bytes = this.#view(Uint8Array, at);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }

  #int(at) {
    return this.#view(DataView, at, 4).getInt32(0, true);
  }

  allocate(bytes) {
    const at = bytes < 2 ** 32 ? this.#exports.malloc(bytes) >>> 0 : 0; // more would be cut off to 32 bits
    if (at === 0)
      throw new EvitsegError("memory", `there is not enough memory for ${Math.ceil(bytes / 2 ** 20)} MB more; choose a smaller size`);
    return at;
  }

  free(at) {
    this.#exports.free(at);
  }

  /** Calls use(address, ...) with memory of these lengths, which is free afterwards. */
  with(lengths, use) {
    const places = [];
    try {
      for (const length of lengths) places.push(this.allocate(length));
      return use(...places);
    } finally {
      for (const at of places.reverse()) this.free(at);
    }
  }

  #check(code) {
    if (code === 0) return;
    const kinds = { 1: "model", 2: "image", 3: "memory", 5: "model" };
    throw new EvitsegError(kinds[code] ?? "argument", this.#text(this.#exports.evs_error_text(code)));
  }

  /** Loads the bytes of a model file, or of a program: { at, classes, isClassifier, instructionSet, manifest }. */
  loadModel(bytes) {
    return this.with([bytes.length, 4], (place, result) => {
      this.#view(Uint8Array, place, bytes.length).set(bytes);
      this.#check(this.#exports.evs_model_load(place, bytes.length, 0, 0, result));
      const at = this.#int(result);
      return {
        at,
        classes: this.#exports.evs_model_classes(at),
        isClassifier: this.#exports.evs_model_is_classifier(at) !== 0,
        instructionSet: this.#text(this.#exports.evs_model_isa(at)),
        manifest: this.#text(this.#exports.evs_model_manifest(at)),
      };
    });
  }

  /** A runner with this many threads; for more than one, wait until they have begun before it runs. */
  newRunner(model, threads) {
    return this.with([4], (result) => {
      this.#check(this.#exports.evs_runner_new(model.at, threads, result));
      return this.#int(result);
    });
  }

  freeRunner(runner) {
    this.#exports.evs_runner_free(runner);
  }

  /** Frees the stacks of threads that have ended. */
  freeStacks() {
    for (const stack of this.#stacks.splice(0)) this.free(stack);
  }

  /** Puts pixels of 3 or 4 bytes at an address, which has 4 bytes for each, as pixels of 3 bytes. */
  place(at, pixels, count) {
    this.#view(Uint8Array, at, pixels.length).set(pixels);
    if (pixels.length === 4 * count) this.#exports.evs_drop_alpha(at, count);
  }

  /** Resizes RGB pixels as Pillow does with its bilinear filter. */
  resize(from, width, height, to, newWidth, newHeight) {
    this.with([48], (at) => {
      const sides = this.#view(Int32Array, at, 12);
      sides.set([height, newHeight, 0, newHeight, 0, height, width, newWidth, 0, newWidth, 0, width]);
      this.#check(this.#exports.evs_resize(from, width * 3, at, at + 24, 0, to));
    });
  }

  /** Logits of RGB pixels whose sides are multiples of 32. */
  run(runner, pixels, width, height, logits) {
    this.#check(this.#exports.evs_run(runner, pixels, height, width, width * 3, logits));
  }

  /** The class of every pixel, from logits. */
  mask(runner, logits, classes, logitsWidth, logitsHeight, width, height, mask) {
    this.with([48], (at) => {
      this.#view(Int32Array, at, 12).set([logitsHeight, height, 0, 0, 0, 0, logitsWidth, width, 0, 0, 0, 0]);
      this.#check(this.#exports.evs_mask(runner, logits, classes, at, at + 24, mask));
    });
  }

  /** Pixels of each of 256 classes in a mask of bytes. */
  countClasses(mask, pixels) {
    return this.with([256 * 8], (counts) => {
      this.#view(Uint8Array, counts, 256 * 8).fill(0);
      this.#exports.evs_count_classes(mask, pixels, counts);
      return Array.from(this.#view(BigUint64Array, counts, 256), Number);
    });
  }

  /** Rows of a mask as the content of a PNG file's IDAT chunk. */
  pngRows(pixels, height, rowBytes, pixelBytes) {
    const bound = this.#exports.evs_png_bound(height, rowBytes);
    return this.with([pixels.length, bound, 8], (from, out, result) => {
      this.#view(Uint8Array, from, pixels.length).set(pixels);
      this.#check(this.#exports.evs_png_rows(from, height, rowBytes, pixelBytes, 0, 1, result, out, result + 4));
      return this.copied(Uint8Array, out, this.#int(result + 4));
    });
  }

  /** Starts measuring the time of every operation. */
  startProfile(runner) {
    this.#check(this.#exports.evs_runner_profile(runner, 1));
  }

  /** Nanoseconds of each of a program's operations since then. */
  profile(runner, operations) {
    return this.with([8 * operations], (at) => {
      this.#check(this.#exports.evs_runner_times(runner, at, operations));
      return Array.from(this.#view(BigInt64Array, at, operations), Number);
    });
  }
}
