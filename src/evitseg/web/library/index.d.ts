/** Semantic segmentation in the browser. The network runs in a worker, in WebAssembly; nothing is uploaded. */

export interface LoadOptions {
  /**
   * Number of threads, or "auto" for one per core, at most 4. Browsers allow threads on isolated pages only
   * (`crossOriginIsolated`); elsewhere there is one. See {@link isolate}.
   */
  threads?: number | "auto";
  /**
   * URL of the `model.check` that the export wrote: a small image with its logits. The model is run on it, and `load` rejects
   * with the code "verification" if this device computes other numbers. Without it, nothing is verified.
   */
  check?: string | URL | null;
  /** The instructions: "auto" takes "relaxed" SIMD where the browser has it, and "plain" SIMD if that does not pass the check. */
  simd?: "auto" | "relaxed" | "plain";
  /** Called while the model comes; `total` is null if the server does not say it. */
  progress?: ((bytes: { received: number; total: number | null }) => void) | null;
  signal?: AbortSignal | null;
}

export interface ModelClass {
  index: number;
  name: string;
  /** Red, green and blue, 0 to 255. */
  color: [number, number, number];
}

export interface Verification {
  passed: boolean;
  /** Largest difference of a logit, as a fraction of the largest logit. */
  largestDifference: number;
  /** Fraction of cells of 8 by 8 pixels whose class is the expected one. */
  equalPixels: number;
  milliseconds: number;
}

export interface Info {
  instructionSet: "relaxed SIMD" | "SIMD";
  threads: number;
  /** Whether the page is isolated and the browser has shared memory, so that there may be several threads. */
  isolated: boolean;
  cores: number;
}

export interface Pixels {
  /** RGBA or RGB, row by row. */
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
}

/** An `ImageBitmap` and a `VideoFrame` move to the worker and are closed there. Everything else stays yours. */
export type Image =
  | ImageData
  | Pixels
  | ImageBitmap
  | VideoFrame
  | Blob
  | HTMLImageElement
  | HTMLVideoElement
  | HTMLCanvasElement
  | SVGImageElement
  | OffscreenCanvas;

/** The short side in the network in pixels, "native" for the image's own size, or null for the model's rule. */
export type Size = number | "native" | null;

export interface Segmentation {
  /** Class index of every pixel; two bytes each for more than 255 classes. */
  mask: Uint8Array | Uint16Array;
  width: number;
  height: number;
  /** Pixels of each class. */
  pixels: number[];
  /** (classes, logitsHeight, logitsWidth) */
  logits: Float32Array;
  logitsWidth: number;
  logitsHeight: number;
  networkWidth: number;
  networkHeight: number;
  /** Of the worker; `total` is all of them. */
  milliseconds: { decode: number; resize: number; network: number; mask: number; total: number };
}

export interface Model {
  readonly name: string;
  /** What `evitseg info` shows: labels, preprocess, training, accuracy and more. */
  readonly manifest: Record<string, unknown>;
  readonly classes: ModelClass[];
  readonly info: Info;
  /** Of the last check; null without one. */
  readonly verification: Verification | null;
  /** Requests are answered one after another. One whose `signal` is aborted rejects, and is skipped if it has not begun. */
  segment(image: Image, options?: { size?: Size; signal?: AbortSignal | null }): Promise<Segmentation>;
  /** Size of the network's input for an image. */
  networkSize(width: number, height: number, size?: Size): { width: number; height: number };
  /** Runs the check again; null without one. */
  verify(): Promise<Verification | null>;
  /** The mask as a PNG of class indices, with the classes' colours as palette or as grey levels. */
  png(
    mask: { mask: Uint8Array | Uint16Array; width: number; height: number },
    format?: "palette" | "gray",
  ): Promise<Blob>;
  /**
   * Sets the number of threads from now on. Resolves with the number in use, which is smaller if there is not enough memory. If
   * threads cannot be started, it rejects and leaves those that there are.
   */
  setThreads(threads: number): Promise<number>;
  /** Ends the workers and frees their memory. */
  close(): void;
}

/**
 * - "unsupported": the browser is too old.
 * - "file": a file cannot be loaded.
 * - "model": the model is damaged, or of another version.
 * - "verification": this device computes other numbers; see `verification`.
 * - "memory": there is not enough memory.
 * - "image": the image cannot be decoded, or is too large.
 * - "argument": an argument is wrong.
 * - "aborted": the signal said so.
 * - "closed": the model was closed.
 * - "worker": the worker failed; load the model again.
 */
export type ErrorCode =
  | "unsupported"
  | "file"
  | "model"
  | "verification"
  | "memory"
  | "image"
  | "argument"
  | "aborted"
  | "closed"
  | "worker";

export class EvitsegError extends Error {
  readonly code: ErrorCode;
  readonly verification: Verification | null;
}

/** Loads a model that `evitseg export MODEL --to web` wrote. Rejects with an {@link EvitsegError}. */
export function load(url: string | URL, options?: LoadOptions): Promise<Model>;

/**
 * Registers the exported `service-worker.js`: it isolates the page on hosts that do not send the headers for that, and keeps the
 * page for use without a network. The first visit to such a host reloads the page once (`reloading`). Never rejects.
 */
export function isolate(url?: string): Promise<{ isolated: boolean; reloading: boolean }>;
