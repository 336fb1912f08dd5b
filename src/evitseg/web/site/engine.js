// What makes the masks on this page: the model in this browser. On the page of `evitseg serve`, another file takes the place
// of this one, whose model is the service (src/evitseg/serve/page/engine.js).

import { isolate, load } from "./evitseg/index.js";

export const place = "browser";

const LOCAL = ["localhost", "127.0.0.1", "[::1]"];

/** Prepare this page for threads and for working offline. Returns whether it is being reloaded for that. */
export async function prepare() {
  // evitseg web sends the headers itself, and there is nothing to keep for later.
  if (crossOriginIsolated && LOCAL.includes(location.hostname)) return false;
  const { reloading } = await isolate("./service-worker.js");
  return reloading;
}

/** Load the model. Rejects with code "verification" if this device computes something else, unless `isInsisting`. */
export function open(progress, isInsisting) {
  return load("model.evit", isInsisting ? { progress } : { progress, check: "model.check" });
}
