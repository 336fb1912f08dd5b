// The network's worker: holds the core and one model, and answers one request after another.
import { Core, coreFile, sharedMemory } from "./core.js";
import { EvitsegError, packed } from "./errors.js";
import { compare, networkSize, readCheck, readManifest } from "./model_file.js";
import { readPixels } from "./pixels.js";
import { pngParts } from "./png.js";

let core, model, manifest, runner, check;
let hasThreads = false;
const helpers = []; // workers that run threads: { worker, ended }, and ended is null while one waits for a thread
const starting = [];
let broken = null; // the error after which there are no threads to run the network on
const aborted = new Set();

async function fetched(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new EvitsegError("file", `${url} cannot be loaded; check the connection`);
  }
  if (!response.ok) throw new EvitsegError("file", `${url} cannot be loaded (status ${response.status})`);
  return response;
}

async function compiled(url) {
  const response = await fetched(url);
  const isNamed = response.headers.get("content-type")?.startsWith("application/wasm");
  try {
    return await (isNamed ? WebAssembly.compileStreaming(response) : WebAssembly.compile(await response.arrayBuffer()));
  } catch (error) {
    throw new EvitsegError("unsupported", `this browser does not run ${url} (${error.message})`);
  }
}

/** All bytes of a response, and word of those that have come. */
async function received(response, progress) {
  const isCompressed = response.headers.has("content-encoding"); // then the length is not that of what comes
  const total = isCompressed ? null : Number(response.headers.get("content-length")) || null;
  const parts = [];
  let bytes = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    bytes += value.length;
    progress(bytes, total);
  }
  const all = new Uint8Array(bytes);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Listens to a helper, which fails with one sentence. */
function listen(worker, heard, fail) {
  worker.onmessage = ({ data }) => heard(data);
  worker.onerror = (event) => {
    event.preventDefault(); // the page's own worker has not failed
    fail(new EvitsegError("worker", "a thread cannot be started; use fewer threads"));
  };
}

/** Loads workers for so many threads. The core waits for its threads, so those that cannot start must be noticed before. */
async function prepareHelpers(count) {
  const made = [];
  while (helpers.length + made.length < count) made.push(new Worker(new URL("./thread.js", import.meta.url), { type: "module" }));
  try {
    await Promise.all(made.map((worker) => new Promise((ready, fail) => listen(worker, ready, fail))));
  } catch (error) {
    for (const worker of made) worker.terminate();
    throw error;
  }
  helpers.push(...made.map((worker) => ({ worker, ended: null })));
}

function startThread(thread) {
  const helper = helpers.find(({ ended }) => ended === null);
  helper.ended = new Promise((end) => {
    starting.push(new Promise((begin, fail) => listen(helper.worker, (word) => (word === "begins" ? begin() : end()), fail)));
  });
  helper.worker.postMessage(thread);
}

async function setThreads(wanted) {
  if (wanted > 1 && !hasThreads) throw new EvitsegError("argument", "the model was loaded with one thread; load it again with more");
  await prepareHelpers(wanted - 1); // if this fails, the threads are those of before
  if (runner !== undefined) {
    core.freeRunner(runner);
    await Promise.all(helpers.map(({ ended }) => ended));
    for (const helper of helpers) helper.ended = null;
    core.freeStacks();
  }
  try {
    runner = core.newRunner(model, wanted);
    const begun = await Promise.all(starting.splice(0));
    return 1 + begun.length;
  } catch (error) {
    broken = new EvitsegError("worker", `${error.message}; load the model again`);
    throw error;
  }
}

function verify() {
  if (!check) return null;
  const start = performance.now();
  const { width, height, pixels } = check;
  const result = core.with([4 * width * height, 4 * model.classes * (width / 8) * (height / 8)], (image, logits) => {
    core.place(image, pixels, width * height);
    core.run(runner, image, width, height, logits);
    return compare(core.copied(Float32Array, logits, model.classes * (width / 8) * (height / 8)), check);
  });
  return { ...result, milliseconds: performance.now() - start };
}

async function load({ modelUrl, checkUrl, folder, simd, shared, threads }, progress) {
  const [module, bytes, checkText] = await Promise.all([
    compiled(new URL(coreFile(simd, shared), folder)),
    fetched(modelUrl).then((response) => received(response, progress)),
    checkUrl ? fetched(checkUrl).then((response) => response.text()) : null,
  ]);
  hasThreads = shared;
  core = await Core.create(module, shared ? sharedMemory() : null, startThread);
  model = core.loadModel(bytes);
  manifest = readManifest(model);
  check = checkText === null ? null : readCheck(checkText);
  return { manifest, threads: await setThreads(threads), verification: verify() };
}

async function segment({ image, size }) {
  const start = performance.now();
  const { data, width, height } = await readPixels(image);
  const network = networkSize(manifest.preprocess, width, height, size);
  const classes = model.classes;
  const logitsWidth = network.width / 8;
  const logitsHeight = network.height / 8;
  const resizes = network.width !== width || network.height !== height;
  const MaskArray = classes <= 255 ? Uint8Array : Uint16Array;
  const times = { decode: performance.now() - start };
  let last = performance.now();
  const lap = (name) => {
    const now = performance.now();
    times[name] = now - last;
    last = now;
  };
  const numbers = classes * logitsWidth * logitsHeight;
  const result = core.with([4 * width * height, resizes ? 3 * network.width * network.height : 0, 4 * numbers], (pixels, small, logits) => {
    core.place(pixels, data, width * height);
    if (resizes) core.resize(pixels, width, height, small, network.width, network.height);
    lap("resize");
    core.run(runner, resizes ? small : pixels, network.width, network.height, logits);
    lap("network");
    // The mask takes the place of the image.
    core.mask(runner, logits, classes, logitsWidth, logitsHeight, width, height, pixels);
    const mask = core.copied(MaskArray, pixels, width * height);
    const counts = MaskArray === Uint8Array ? core.countClasses(pixels, width * height).slice(0, classes) : counted(mask, classes);
    lap("mask");
    return { mask, pixels: counts, logits: core.copied(Float32Array, logits, numbers) };
  });
  times.total = performance.now() - start;
  return {
    ...result,
    width,
    height,
    logitsWidth,
    logitsHeight,
    networkWidth: network.width,
    networkHeight: network.height,
    milliseconds: times,
  };
}

function counted(mask, classes) {
  const counts = new Array(classes).fill(0);
  for (const c of mask) counts[c]++;
  return counts;
}

function png({ mask, width, height, colors }) {
  if (mask.length !== width * height) throw new EvitsegError("argument", `${mask.length} numbers are not a mask of ${width} × ${height}`);
  const parts = pngParts(mask, width, height, colors, (...rows) => core.pngRows(...rows));
  return new Blob(parts, { type: "image/png" });
}

/** Milliseconds of each operation of the program, added up over so many runs on an image. */
function profile({ image, runs, operations }) {
  const { data, width, height } = image;
  return core.with([4 * width * height, 4 * model.classes * (width / 8) * (height / 8)], (pixels, logits) => {
    core.place(pixels, data, width * height);
    core.startProfile(runner);
    for (let i = 0; i < runs; i++) core.run(runner, pixels, width, height, logits);
    return core.profile(runner, operations).map((nanoseconds) => nanoseconds / 1e6 / runs);
  });
}

const requests = {
  load: (data, id) => load(data, (bytes, total) => postMessage({ id, progress: { received: bytes, total } })),
  segment,
  verify,
  png,
  profile,
  setThreads: ({ threads }) => setThreads(threads),
};

let last = Promise.resolve();
addEventListener("message", ({ data }) => {
  const { id, kind } = data;
  if (kind === "abort") {
    aborted.add(id);
    return;
  }
  last = last.then(async () => {
    try {
      if (aborted.delete(id)) {
        data.image?.close?.();
        return;
      }
      if (broken !== null) throw broken;
      const result = await requests[kind](data, id);
      aborted.delete(id);
      const moved = [result?.mask?.buffer, result?.logits?.buffer].filter((buffer) => buffer !== undefined);
      postMessage({ id, result }, moved);
    } catch (error) {
      data.image?.close?.(); // nobody else can
      postMessage({ id, error: packed(error) });
    }
  });
});
