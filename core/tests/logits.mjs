// Runs a program on an image in the core as WebAssembly, and writes the logits:
// node logits.mjs MODULE.wasm PROGRAM IMAGE.rgb HEIGHT WIDTH OUT.f32 [THREADS]
import { readFileSync, writeFileSync } from "node:fs";
import { Worker, isMainThread, parentPort, workerData } from "node:worker_threads";
import { Core, runThread, sharedMemory } from "../../src/evitseg/web/library/core.js";

async function run(file, program, image, ...rest) {
  const [height, width, threads] = [rest[0], rest[1], rest[3] ?? 1].map(Number);
  const beginning = [];
  const startThread = (thread) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: thread });
    beginning.push(new Promise((resolve) => worker.once("message", resolve)));
  };
  const module = new WebAssembly.Module(readFileSync(file));
  const hasThreads = WebAssembly.Module.imports(module).some(({ kind }) => kind === "memory");
  const core = await Core.create(module, hasThreads ? sharedMemory() : null, startThread);
  const model = core.loadModel(readFileSync(program));
  const runner = core.newRunner(model, threads);
  await Promise.all(beginning);
  const numbers = model.classes * (height / 8) * (width / 8);
  const logits = core.with([4 * height * width, 4 * numbers], (pixels, logits) => {
    core.place(pixels, readFileSync(image), height * width);
    core.run(runner, pixels, width, height, logits);
    return core.copied(Float32Array, logits, numbers);
  });
  writeFileSync(rest[2], logits);
  console.log(model.instructionSet);
  process.exit(); // node's threads end with it; its main thread does not wake up reliably when it waits for them
}

if (isMainThread) {
  await run(...process.argv.slice(2));
} else {
  parentPort.postMessage("begins");
  runThread(workerData);
}
