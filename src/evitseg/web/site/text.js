// All English text of the page. Elements get theirs by data-text, and their labels by data-label.

const seconds = (value) => `${Math.floor(value / 60)}:${String(Math.floor(value % 60)).padStart(2, "0")}`;
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
const milliseconds = (value) => (value < 10 ? `${value.toFixed(1)}\u00a0ms` : `${value.toFixed(0)}\u00a0ms`);
const small = (value) => value.toExponential(1);

export const text = {
  title: "evitseg",
  about: "Semantic segmentation",
  privacy: {
    browser: () => "Everything runs on this device. No image is uploaded.",
    server: (host) =>
      `Images and frames are sent to the service at ${host}, which segments them and does not store them. They are sent nowhere else.`,
  },
  noModel: "The model could not be loaded.",

  // What is shown
  stage: "Image with its mask",
  stageKeys: "Arrow keys move a cross over the image and read the class below it. M switches the mask on and off, square brackets change its opacity, B compares with the image, the space bar pauses a video.",
  dropHere: "Drop an image or a video",
  unverified: "Unverified masks",
  summary: (entries) => `Classes: ${entries.join(", ")}.`,
  nothingFound: "No classes are shown yet.",
  pointer: (name, x, y) => `${name} · x ${x}, y ${y}`,
  noClass: "no class",

  // Sources
  sources: "Source",
  open: "Open a file",
  openLabel: "Open a file: an image or a video",
  camera: "Camera",
  stopCamera: "Stop camera",
  switchCamera: "Switch camera",
  example: "Example",
  play: "Play",
  pause: "Pause",
  position: "Position in the video",
  time: (now, all) => `${seconds(now)} / ${seconds(all)}`,
  clipboardName: "pasted image",
  cameraName: "camera",

  // Overlay
  overlay: "Overlay",
  opacity: "Opacity",
  compare: "Before and after",
  split: "Position of the line between before and after",
  percent: (value) => `${value} %`,

  // Classes
  classes: "Classes",
  class: "Class",
  fraction: "Fraction",
  showAll: "Show all",
  hideAll: "Hide all",

  // Saving
  save: "Save",
  saveMask: "Mask",
  saveIds: "Class ids",
  saveOverlay: "Overlay",
  saveJson: "JSON",
  saveCsv: "CSV",
  saveMaskLabel: "Mask: PNG of class ids with the colours of the classes",
  saveIdsLabel: "Class ids: PNG of grey levels, for programs",
  saveOverlayLabel: "Overlay: PNG of the image with its mask and a legend",
  saveJsonLabel: "JSON: classes, pixels, fractions and times",
  saveCsvLabel: "CSV: classes, pixels and fractions",

  // Speed
  speed: "Speed",
  size: "Size",
  sizeHelp: "A smaller size is faster and less accurate. Automatic reduces only the camera and videos, until there are about ten masks per second.",
  sizeAutomatic: (own) => (own ? `Automatic (images: ${own})` : "Automatic"),
  sizeOption: (size) => `${size} pixels`,
  sizeFixed: (height, width) => `${width} × ${height}, fixed`,
  network: "Network",
  whole: "Mask, in all",
  rate: "Masks per second",
  age: "Age of the mask",
  input: "Network input",
  threads: "Threads",
  instructions: "Instruction set",
  isolated: "Isolated",
  verification: "Verification",
  engine: "Engine",
  none: "–",
  milliseconds,
  perSecond: (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0)),
  sides: (width, height) => `${width} × ${height}`,
  threadsOf: (threads, cores) => (cores ? `${threads} of ${cores}` : String(threads)),
  isIsolated: (is) => (is ? "yes (threads)" : "no (one thread)"),
  agrees: (largest) => (largest ? `agrees within ${small(largest)}` : "agrees exactly"),
  disagrees: "disagrees",
  notVerified: "not stored with this model",

  // Keys and licences
  keys: "Keys, when the image has the focus",
  keyList: [
    ["← ↑ → ↓", "class below a cross"],
    ["M", "mask on or off"],
    ["[ ]", "opacity"],
    ["B", "before and after"],
    ["Space", "pause a video"],
  ],
  version: (version) => `evitseg ${version}`,
  licences: "Licence",
  addresses: "Addresses of this service",

  // The key of a service
  key: "API key",
  useKey: "Use the key",
  keyHelp: "The key is sent to this service only. The browser forgets it when this tab is closed.",

  // Status
  status: "Status",
  loading: (received, total) => `Loading the model: ${megabytes(received)}${total ? ` of ${megabytes(total)}` : ""} MB`,
  starting: "Loading the model…",
  reloading: "Reloading once, so that threads can be used…",
  converting: (name) => `Asking the service to convert ${name}…`,
  segmenting: (name) => `Segmenting ${name}…`,
  segmented: (name, width, height, ms) => `${name}: ${width} × ${height} pixels in ${milliseconds(ms)}`,
  live: { camera: "The camera is being segmented.", video: (name) => `${name} is being segmented.` },
  openingCamera: "Opening the camera…",
  cameraStopped: "The camera is off. The last image is shown.",
  cameraHidden: "The camera is off while this page is hidden.",
  cameraEnded: "The camera was disconnected.",
  firstOnly: (name, count) => `Only the first of ${count} files is used: ${name}.`,
  firstFrame: "It is an animation; only its first frame is used.",
  saved: (name) => `Saved ${name}.`,

  // Problems
  cannotShow: (name) => `${name} cannot be shown: this browser does not know its format, or it is damaged. JPEG, PNG and WebP work everywhere.`,
  cannotPlay: (name) => `${name} cannot be played: this browser does not know its format. MP4 with H.264 and WebM work in most.`,
  noFile: "There is no image or video in what was dropped or pasted.",
  cameraProblems: {
    NotAllowedError: "The camera may not be used. Allow it for this page in the browser's settings, and try again.",
    NotFoundError: "This device has no camera.",
    OverconstrainedError: "There is no such camera. Connect one, and try again.",
    NotReadableError: "The camera is in use by another program. Close that program, and try again.",
    other: (reason) => `The camera cannot be opened (${reason}).`,
  },
  cameraInsecure: {
    browser: "Browsers give the camera only to pages over https or on localhost. For a phone, start evitseg web with --lan.",
    server: "Browsers give the camera only to pages over https or on localhost. Put a proxy with https in front of the service.",
  },
  tooLargeToSave: (width, height) => `this browser cannot save an overlay of ${width} × ${height} pixels; save the mask instead.`,
  disagreement: (verification) => {
    const numbers = verification
      ? ` The largest difference is ${small(verification.largestDifference)} of the largest value, and ${(100 * verification.equalPixels).toFixed(2)} % of the pixels are equal.`
      : "";
    return `This device does not compute what the model computes elsewhere.${numbers} Its masks may be wrong, so none are shown. Updating the browser may help.`;
  },
  insist: "Show masks anyway",
  tryAgain: "Try again",
  /** A message of the library as a sentence. */
  sentence: (message) => `${/^[a-z]+ /.test(message) ? message[0].toUpperCase() + message.slice(1) : message}${/[.!?]$/.test(message) ? "" : "."}`,
  ofFile: (name, message) => `${name}: ${message}`,
  unexpected: (reason) => `Something went wrong: ${reason}`,
};

/** Write the text into the elements of a document that ask for it. */
export function fill(root) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text[element.dataset.text];
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text[element.dataset.label]);
    if (element.tagName === "BUTTON") element.title = text[element.dataset.label];
  }
}
