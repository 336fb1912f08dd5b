// A model's own rules: the size at which images go through the network, and the stored image that it is checked with.
import { EvitsegError } from "./errors.js";

const STRIDE = 32;
const MAX_PIXELS = 178_956_970; // as in evitseg.image

// As Python rounds: halves to the even neighbour.
function rounded(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/** The network's input for an image, as `Preprocess.fit` in Python: { width, height }. */
export function networkSize(preprocess, width, height, size = null) {
  const { fixed, short_side: shortSide, max_enlarge: maxEnlarge } = preprocess;
  if (fixed) {
    if (size !== null)
      throw new EvitsegError("argument", `this model takes images of ${fixed[1]} × ${fixed[0]} only; leave out the size`);
    return { width: fixed[1], height: fixed[0] };
  }
  const short = Math.min(width, height);
  let scale = 1;
  if (size === null) {
    if (shortSide) scale = Math.min(shortSide / short, maxEnlarge);
  } else if (size !== "native") {
    if (!Number.isInteger(size) || size < STRIDE || size > 16384)
      throw new EvitsegError("argument", `size ${size} is out of range; it must be 32 to 16384 pixels, "native" or null`);
    scale = size / short;
  }
  const [fitWidth, fitHeight] = [width, height].map((side) => Math.max(1, rounded((side * scale) / STRIDE)) * STRIDE);
  if (fitWidth * fitHeight > MAX_PIXELS)
    throw new EvitsegError("image", `the image would be ${fitWidth} × ${fitHeight} in the network, which is too large; choose a smaller size`);
  return { width: fitWidth, height: fitHeight };
}

/** The parsed manifest of a model, which must be one for segmentation. */
export function readManifest(model) {
  if (model.isClassifier) throw new EvitsegError("model", "this model is a classifier; only segmentation models are supported");
  let manifest;
  try {
    manifest = JSON.parse(model.manifest);
  } catch {
    throw new EvitsegError("model", "the model has no manifest; export it with evitseg export --to web");
  }
  if (manifest.labels?.classes?.length !== model.classes || !manifest.preprocess)
    throw new EvitsegError("model", "the model's manifest is damaged; export it again");
  return manifest;
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

/** A stored image with its expected logits: { width, height, pixels, logits, tolerance, leastEqual }. */
export function readCheck(text) {
  try {
    const { width, height, pixels, logits, tolerance, least_equal: leastEqual } = JSON.parse(text);
    const check = { width, height, pixels: bytesOf(pixels), logits: new Float32Array(bytesOf(logits).buffer), tolerance, leastEqual };
    if (check.pixels.length === 3 * width * height && tolerance > 0) return check;
  } catch {
    // Reported below.
  }
  throw new EvitsegError("file", "the file that the model is checked with is damaged; export the model again");
}

/** How well logits agree with the expected ones: { passed, largestDifference, equalPixels }. */
export function compare(actual, { logits: expected, width, height, tolerance, leastEqual }) {
  const cells = (width / 8) * (height / 8);
  const classes = expected.length / cells;
  let difference = actual.length === expected.length ? 0 : Infinity;
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    const apart = Math.abs(actual[i] - expected[i]);
    if (!(apart <= difference)) difference = Number.isNaN(apart) ? Infinity : apart;
    largest = Math.max(largest, Math.abs(expected[i]));
  }
  const winner = (logits, cell) => {
    let best = 0;
    for (let c = 1; c < classes; c++) if (logits[c * cells + cell] > logits[best * cells + cell]) best = c;
    return best;
  };
  let equal = 0;
  for (let cell = 0; cell < cells; cell++) if (winner(actual, cell) === winner(expected, cell)) equal++;
  const largestDifference = difference / largest;
  return { passed: largestDifference <= tolerance && equal >= leastEqual * cells, largestDifference, equalPixels: equal / cells };
}
