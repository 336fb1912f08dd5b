// A thread of the core's pool: waits in WebAssembly for work, between the calls of `runThread`.
import { runThread } from "./core.js";

addEventListener("message", ({ data }) => {
  runThread(data, () => postMessage("begins"));
  postMessage("ends");
});
postMessage("ready");
