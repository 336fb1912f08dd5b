// Runs a program on an image in the core as WebAssembly, and writes the logits:
// node logits.mjs MODULE.wasm PROGRAM IMAGE.rgb HEIGHT WIDTH OUT.f32
import { readFileSync, writeFileSync } from "node:fs";

const [module, program, image, ...rest] = process.argv.slice(2);
const [height, width] = rest.map(Number);

// The only thing that the core asks the host for is the time.
const wasi = {
  clock_time_get(clock, precision, at) {
    new DataView(core.memory.buffer).setBigUint64(at, BigInt(Math.round(performance.now() * 1e6)), true);
    return 0;
  },
};
const { instance } = await WebAssembly.instantiate(readFileSync(module), { wasi_snapshot_preview1: wasi });
const core = instance.exports;
core._initialize();

function text(at) {
  const bytes = new Uint8Array(core.memory.buffer, at);
  return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
}

function check(code) {
  if (code !== 0) throw new Error(text(core.evs_error_text(code)));
}

// Memory of the module that holds bytes; core.memory.buffer is another one after memory has grown.
function placed(bytes) {
  const at = core.malloc(bytes.length);
  new Uint8Array(core.memory.buffer).set(bytes, at);
  return at;
}

function pointer(at) {
  return new DataView(core.memory.buffer).getUint32(at, true);
}

const content = readFileSync(program), result = core.malloc(4);
check(core.evs_model_load(placed(content), content.length, 0, 0, result));
const model = pointer(result);
check(core.evs_runner_new(model, 1, result));
const runner = pointer(result);
const bytes = core.evs_model_classes(model) * (height / 8) * (width / 8) * 4;
const pixels = placed(readFileSync(image)), logits = core.malloc(bytes);
check(core.evs_run(runner, pixels, height, width, width * 3, logits));
writeFileSync(rest[2], new Uint8Array(core.memory.buffer, logits, bytes));
console.log(text(core.evs_model_isa(model)));
core.evs_runner_free(runner);
core.evs_model_free(model);
