const RELOADED = "evitseg-reloaded";

/**
 * Registers a service worker that gives the page the headers which threads need, on hosts that do not send them, and keeps it
 * for use without a network. The first visit to such a host reloads the page once.
 *
 * @returns {Promise<{ isolated: boolean, reloading: boolean }>} never rejects
 */
export async function isolate(url = "./service-worker.js") {
  const done = (reloading = false) => ({ isolated: globalThis.crossOriginIsolated === true, reloading });
  if (!globalThis.isSecureContext || !navigator.serviceWorker) return done();
  const storage = session();
  try {
    const registration = await navigator.serviceWorker.register(url);
    if (globalThis.crossOriginIsolated) {
      storage?.removeItem(RELOADED);
      return done();
    }
    await Promise.race([navigator.serviceWorker.ready, refused(registration)]);
    if (storage === null || storage.getItem(RELOADED) !== null) return done(); // it has not helped
    storage.setItem(RELOADED, "1");
    location.reload();
    return done(true);
  } catch {
    return done(); // private windows and some settings forbid it
  }
}

/** Rejects if the service worker cannot be installed, such as for a missing file or full storage; it is never ready then. */
function refused({ installing }) {
  return new Promise((_, reject) => {
    installing?.addEventListener("statechange", () => {
      if (installing.state === "redundant") reject(new Error("the service worker was not installed"));
    });
  });
}

function session() {
  try {
    return globalThis.sessionStorage;
  } catch {
    return null;
  }
}
