/** What goes wrong in this library: `code` is for programs, `message` for people. */
export class EvitsegError extends Error {
  /**
   * @param {string} code one of those that index.d.ts lists
   * @param {string} message one sentence that says what to do
   * @param {object | null} verification the numbers, with the code "verification"
   */
  constructor(code, message, verification = null) {
    super(message);
    this.name = "EvitsegError";
    this.code = code;
    this.verification = verification;
  }
}

/** The error as an object that messages between threads can carry. */
export function packed(error) {
  if (error instanceof EvitsegError) return { code: error.code, message: error.message };
  if (error instanceof RangeError) return { code: "memory", message: `there is not enough memory (${error.message}); choose a smaller size` };
  if (error instanceof WebAssembly.RuntimeError)
    return { code: "worker", message: `the network's worker failed (${error.message}); load the model again` };
  return { code: "worker", message: `${error?.message ?? error}` };
}
