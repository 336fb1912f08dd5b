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

async function answer(request) {
  const cache = await caches.open(NAME + VERSION);
  const asked = new URL(request.url);
  const isFolder = asked.pathname === new URL(registration.scope).pathname;
  const kept = await cache.match(isFolder ? "index.html" : request, { ignoreSearch: true });
  const response = kept ?? (await fetch(request));
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
