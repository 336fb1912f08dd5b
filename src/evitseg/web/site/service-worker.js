// Keeps the page for use without a network, and gives it the headers that isolate it, so that browsers allow it threads. The
// exporter fills in the next two lines: a new version replaces all files of the old one.
const VERSION = "";
const FILES = [];

const NAME = `evitseg ${new URL(registration.scope).pathname} `; // other pages of this host may have files of their own
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "cross-origin",
};
const PATIENCE_MS = 3000; // a server that takes longer counts as unreachable

let isGone = false; // whether the server has another page now, which must not get these headers

async function install() {
  const cache = await caches.open(NAME + VERSION);
  // Asked for again where a browser kept them: they may be of another version.
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" })));
  await skipWaiting();
}

async function activate() {
  for (const name of await caches.keys()) if (name.startsWith(NAME) && name !== NAME + VERSION) await caches.delete(name);
  await clients.claim();
}

/**
 * Forget the kept files if the server has a newer export, so that it is seen at once and not from the second visit on. Leave
 * altogether if the server has no such page any more: addresses like localhost:8000 are soon another program's.
 */
async function compareWithServer() {
  let script;
  try {
    const response = await fetch(location.href, { cache: "no-cache", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!response.ok && ![404, 410].includes(response.status)) return; // a server in trouble says nothing about its files
    script = response.ok ? await response.text() : "";
  } catch {
    return; // no network
  }
  const [, version] = script.match(/\bVERSION *= *["'](\w+)["']/) ?? []; // also if the host has shortened the script
  if (version === VERSION) return;
  await caches.delete(NAME + VERSION);
  if (version !== undefined) return;
  isGone = true;
  await registration.unregister();
}

/** From the server, even where the browser keeps a file, which may be of another version. */
function asked(request) {
  const plain = request.mode === "navigate" ? new Request(request.url, { redirect: "manual" }) : request;
  return fetch(plain, { cache: "no-cache" });
}

async function answer(request) {
  if (request.mode === "navigate") await compareWithServer();
  if (isGone) return asked(request);
  const isFolder = new URL(request.url).pathname === new URL(registration.scope).pathname;
  const kept = await caches.match(isFolder ? "index.html" : request, { cacheName: NAME + VERSION, ignoreSearch: true });
  const response = kept ?? (await asked(request));
  if (response.status === 0) return response; // another host's, which cannot be read
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response([101, 204, 205, 304].includes(status) ? null : response.body, { status, statusText, headers });
}

addEventListener("install", (event) => event.waitUntil(install()));
addEventListener("activate", (event) => event.waitUntil(activate()));
addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && request.url.startsWith(registration.scope)) event.respondWith(answer(request));
});
