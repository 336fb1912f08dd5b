// The page: what is shown, and what the controls do.

import * as engine from "./engine.js";
import { decoded, firstFrame, isAnimated } from "./image_file.js";
import { AutomaticSize, Camera, Times, median, segmentFrames } from "./live.js";
import { Legend, showDevice, showKeyForm, showPointer, showProblem, showProgress, showSpeed, showStatus } from "./panel.js";
import { $, percent, pngOf, saveFile, withLegend } from "./parts.js";
import { numbers, table } from "./save.js";
import { Stage } from "./stage.js";
import { fill, text } from "./text.js";

const SIZES = [1024, 720, 512, 384, 256, 192, 128];
const NUMBERS_MS = 250; // between two updates of the numbers of a camera or video
const SUMMARY_MS = 2000;
const REPEATABLE = ["busy", "service"]; // codes of errors that may pass

fill(document);
const video = $("video");
const stage = new Stage({
  frame: $("frame"), photo: $("photo"), video, overlay: $("overlay"), divider: $("divider"), cross: $("cross"),
});
const legend = new Legend((indices, isShown) => stage.hide(indices, isShown));
const camera = new Camera(video);
let model = null;
let isVerified = null;
let source = null; // {kind, name, file, abort}: what is shown
let chosen = 0; // number of times that somebody has chosen what to show; the newest wins
let asked = 0; // number of times that the mask of an image was asked for
let automatic = null;
let isModelThere;
const loaded = new Promise((resolve) => { isModelThere = resolve; });

// The model.

async function loadModel(isInsisting = false) {
  showProblem("");
  showStatus(text.starting);
  showProgress(null);
  const progress = ({ received, total }) => {
    showStatus(text.loading(received, total));
    showProgress(total ? received / total : null);
  };
  try {
    model = await engine.open(progress, isInsisting);
  } catch (error) {
    if (error.code === "key") return askForKey(error);
    showStatus(text.noModel);
    if (error.code !== "verification") return showProblem(text.sentence(error.message), text.tryAgain, () => location.reload());
    return showProblem(text.disagreement(error.verification), text.insist, () => loadModel(true));
  } finally {
    showProgress(undefined);
  }
  isVerified = isInsisting ? false : model.verification?.passed ?? null;
  stage.classes = model.classes;
  legend.setClasses(model.classes);
  $("name").textContent = model.name;
  if (model.manifest.evitseg_version) $("version").textContent = text.version(model.manifest.evitseg_version);
  showDevice({ info: model.info, verification: model.verification, isVerified });
  $("badge").hidden = isVerified !== false;
  listSizes(model.manifest.preprocess);
  showStatus("");
  isModelThere();
}

/** Ask for the service's API key, and go on with it. */
function askForKey({ message }) {
  showStatus(text.sentence(message));
  showKeyForm(async (given) => {
    engine.useKey(given);
    await (model ? again() : loadModel());
  });
}

function listSizes({ fixed, short_side: own }) {
  const option = (label, value) => new Option(label, value);
  if (fixed) $("size").replaceChildren(option(text.sizeFixed(...fixed), ""));
  else {
    const smaller = SIZES.filter((size) => size <= (own ?? SIZES[0]));
    $("size").replaceChildren(option(text.sizeAutomatic(own), ""), ...smaller.map((size) => option(text.sizeOption(size), size)));
  }
  $("size").disabled = Boolean(fixed);
  automatic = new AutomaticSize(own ?? SIZES[0]);
}

/** The short side that somebody has chosen, or null. */
function chosenSize() {
  return $("size").value ? Number($("size").value) : null;
}

// What is shown.

/** End what is shown, and begin with something else. */
function begin(kind, name, file = null) {
  source?.abort.abort();
  if (kind !== "camera") camera.close();
  if (kind !== "video" && video.src) {
    URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.load();
  }
  if (kind !== "image" && $("photo").src) {
    URL.revokeObjectURL($("photo").src);
    $("photo").removeAttribute("src");
  }
  source = { kind, name, file, abort: new AbortController() };
  stage.clear();
  stage.moveCross(null);
  showPointer(null);
  savable(false);
  $("camera-text").textContent = kind === "camera" ? text.stopCamera : text.camera;
  $("camera").setAttribute("aria-pressed", kind === "camera");
  $("switch").hidden = kind !== "camera" || camera.devices.length < 2;
  for (const id of ["play", "seek"]) $(id).hidden = kind !== "video";
  return source;
}

function savable(is) {
  for (const button of $("saves").children) button.disabled = !is;
}

async function openImage(file, name, note = "") {
  const turn = ++chosen;
  showProblem("");
  const isMoving = await isAnimated(file).catch(() => false); // a file that is gone is reported below
  let image = await decoded(isMoving ? await firstFrame(file) : file);
  if (!image && engine.place === "server") {
    await loaded;
    if (turn !== chosen) return;
    showStatus(text.converting(name));
    try {
      image = await decoded(await model.converted(file));
    } catch (error) {
      if (turn === chosen) failed(error, name, () => openImage(file, name, note));
      return;
    }
  }
  if (turn !== chosen) return image && URL.revokeObjectURL(image.src);
  if (!image) return showProblem(text.cannotShow(name));
  begin("image", name, file);
  URL.revokeObjectURL($("photo").src);
  $("photo").src = image.src;
  stage.show("image", image.naturalWidth, image.naturalHeight);
  await segmentImage([note, isMoving && text.firstFrame].filter(Boolean).join(" "));
}

async function segmentImage(note = "") {
  const { name, file, abort: { signal } } = source;
  const turn = ++asked;
  await loaded;
  if (signal.aborted || turn !== asked) return;
  showProblem("");
  showStatus(text.segmenting(name));
  const start = performance.now();
  let result;
  try {
    result = await model.segment(file, { size: chosenSize(), signal });
  } catch (error) {
    if (!signal.aborted && turn === asked) failed(error);
    return;
  }
  if (signal.aborted || turn !== asked) return;
  showMask(result);
  showSpeed({ network: result.milliseconds.network, total: result.milliseconds.total, result });
  const sentence = text.segmented(name, result.width, result.height, performance.now() - start);
  const notes = [note, ...(result.warnings ?? []).map(text.sentence)].filter(Boolean);
  showStatus(notes.length ? `${sentence}. ${notes.join(" ")}` : sentence);
}

/** Segment once more what is shown. */
function again() {
  if (source?.kind === "image") return segmentImage();
  return source && follow();
}

/** Say what went wrong with a file, or with what is shown; `repeat` does it once more. */
function failed(error, name = source?.name, repeat = again) {
  if (["aborted", "closed"].includes(error.code)) return;
  if (error.code === "key") return askForKey(error);
  showStatus("");
  const isOurs = error.code !== undefined;
  const message = error.code === "image" ? text.ofFile(name, error.message) : error.message;
  const sentence = isOurs ? text.sentence(message) : text.unexpected(error.message ?? error);
  if (REPEATABLE.includes(error.code)) showProblem(sentence, text.tryAgain, repeat);
  else showProblem(sentence);
}

function showMask(result, isLive = false) {
  stage.draw(result);
  const whole = result.width * result.height;
  const fractions = result.pixels.map((count) => count / whole);
  savable(true);
  if (!isLive || due("numbers", NUMBERS_MS)) legend.show(fractions);
  if (!isLive || due("summary", SUMMARY_MS)) {
    const entries = model.classes
      .filter(({ index }) => fractions[index] > 0)
      .sort((a, b) => fractions[b.index] - fractions[a.index])
      .map(({ index, name }) => `${name} ${percent(fractions[index])}`);
    $("summary").textContent = entries.length ? text.summary(entries) : text.nothingFound;
  }
}

const last = {};
function due(what, milliseconds) {
  const now = performance.now();
  if (now - (last[what] ?? -Infinity) < milliseconds) return false;
  last[what] = now;
  return true;
}

/** Segment the camera or the video until something else is shown. */
async function follow() {
  const { kind, name, abort: { signal } } = source;
  const sentence = kind === "camera" ? text.live.camera : text.live.video(name);
  await loaded;
  if (signal.aborted) return;
  showProblem("");
  showStatus(sentence);
  const times = new Times();
  let isWaiting = false;
  const waits = ({ message }) => {
    isWaiting = true;
    showStatus(text.sentence(message));
  };
  const sizeOf = (width, height) => model.networkSize(width, height, $("size").value ? chosenSize() : automatic.size);
  const shown = (result, captured) => {
    showMask(result, true);
    if (isWaiting) showStatus(sentence);
    isWaiting = false;
    times.add(captured, result.milliseconds);
    automatic.took(result.milliseconds.total);
    if (!due("speed", NUMBERS_MS)) return;
    showSpeed({
      network: median(times.network), total: median(times.whole), perSecond: times.perSecond, age: median(times.ages), result,
    });
  };
  try {
    await segmentFrames(video, model, sizeOf, shown, waits, signal);
  } catch (error) {
    if (!signal.aborted) failed(error);
  }
}

async function openVideo(file, name) {
  const turn = ++chosen;
  showProblem("");
  begin("video", name);
  video.src = URL.createObjectURL(file);
  try {
    await video.play();
  } catch {
    if (turn === chosen && video.error) showProblem(text.cannotPlay(name));
  }
  if (turn === chosen && !video.error) await follow();
}

/** Show a file that was chosen, dropped or pasted. */
function openFile(files) {
  const [file] = files;
  if (!file) return showProblem(text.noFile);
  const name = file.name || text.clipboardName;
  if (file.type.startsWith("video/")) return openVideo(file, name);
  return openImage(file, name, files.length > 1 ? text.firstOnly(name, files.length) : "");
}

async function openExample() {
  const turn = ++chosen;
  const answer = await fetch("example.jpg");
  const blob = await answer.blob();
  if (turn === chosen) await openImage(blob, "example.jpg");
}

// The camera.

async function startCamera() {
  const turn = ++chosen;
  showProblem("");
  showStatus(text.openingCamera);
  $("camera").disabled = true;
  try {
    if (!navigator.mediaDevices) throw new DOMException("", "insecure");
    await camera.open(cameraEnded);
  } catch (error) {
    if (error.name === "AbortError" || turn !== chosen) return;
    showStatus("");
    const { [error.name]: known, other } = { ...text.cameraProblems, insecure: text.cameraInsecure[engine.place] };
    return showProblem(known ?? other(error.message || error.name));
  } finally {
    $("camera").disabled = false;
  }
  if (turn !== chosen) return camera.close();
  begin("camera", text.cameraName);
  fitVideo();
  stage.mirror(camera.isFront);
  await follow();
}

/** Keep the last frame of the camera as an image. */
async function stopCamera(sentence) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  source.abort.abort();
  camera.close();
  const blob = await pngOf(canvas);
  if (blob) await openImage(blob, text.cameraName, sentence);
}

function cameraEnded() {
  stopCamera(text.cameraEnded);
}

function fitVideo() {
  if (video.videoWidth) stage.show("video", video.videoWidth, video.videoHeight);
  stage.mirror(camera.isFront);
}

let isResumed = null; // what goes on when the page is seen again
function seenOrHidden() {
  if (!document.hidden) {
    isResumed?.();
    isResumed = null;
  } else if (camera.isOpen) {
    source.abort.abort();
    camera.close();
    showStatus(text.cameraHidden);
    isResumed = startCamera;
  } else if (source?.kind === "video" && !video.paused) {
    video.pause();
    isResumed = () => video.play();
  }
}

// Saving.

async function save(kind) {
  const { result } = stage;
  if (!result) return;
  const stem = source.name.replace(/\.[^.]*$/, "").replaceAll(" ", "_");
  const about = () => numbers(result, model, source.name, isVerified);
  const files = {
    mask: async () => [await model.png(result), `${stem}_mask.png`],
    ids: async () => [await model.png(result, "gray"), `${stem}_ids.png`],
    overlay: async () => [await overlay(), `${stem}_overlay.png`],
    json: async () => [new Blob([JSON.stringify(about(), null, 2)], { type: "application/json" }), `${stem}.json`],
    csv: async () => [new Blob([table(about())], { type: "text/csv" }), `${stem}.csv`],
  };
  const [blob, name] = await files[kind]();
  saveFile(blob, name);
  showStatus(text.saved(name));
}

async function overlay() {
  const { width, height, pixels } = stage.result;
  const fractions = pixels.map((count) => count / (width * height));
  const blob = await pngOf(withLegend(stage.tinted(), model.classes, fractions, stage.hidden));
  if (!blob) throw Object.assign(new Error(text.tooLargeToSave(width, height)), { code: "image" });
  return blob;
}

// Controls.

let opacity = Number($("opacity").value);
function setOpacity(value) {
  $("opacity").value = value;
  $("opacity-value").textContent = text.percent(value);
  stage.setOpacity(value / 100);
}

function compare(isOn) {
  $("compare").checked = isOn;
  $("split").hidden = !isOn;
  stage.setSplit(isOn ? $("split").value / 100 : null);
}

function splitAt(event) {
  const { left, width } = stage.frame.getBoundingClientRect();
  $("split").value = (100 * (event.clientX - left)) / width;
  compare(true);
}

function togglePlay() {
  if (source?.kind !== "video") return false;
  if (video.paused) video.play();
  else video.pause();
  return true;
}

function point(at) {
  const found = stage.at(at);
  showPointer(found, stage.classes);
  return found;
}

function moveCross(steps) {
  const found = point(stage.moveCross(steps));
  if (found) $("spoken").textContent = $("pointer").textContent;
}

function key(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  if (steps) {
    moveCross(event.shiftKey ? steps.map((step) => 10 * step) : steps);
    return true;
  }
  switch (event.key) {
    case "m": case "M": setOpacity(Number($("opacity").value) ? 0 : opacity || 55); return true;
    case "[": case "]":
      opacity = Math.max(0, Math.min(100, Number($("opacity").value) + (event.key === "[" ? -10 : 10)));
      setOpacity(opacity);
      return true;
    case "b": case "B": compare(!$("compare").checked); return true;
    case " ": return togglePlay();
    default: return false;
  }
}

function bind() {
  const on = (id, kind, action) => $(id).addEventListener(kind, action);
  on("open", "click", () => $("file").click());
  on("file", "change", ({ target }) => {
    if (target.files.length) openFile([...target.files]);
    target.value = ""; // the same file may be chosen again
  });
  on("example", "click", openExample);
  on("camera", "click", () => (camera.isOpen ? stopCamera(text.cameraStopped) : startCamera()));
  on("switch", "click", () => {
    camera.next();
    startCamera();
  });
  on("play", "click", togglePlay);
  on("position", "input", () => { video.currentTime = $("position").value * video.duration; });
  on("opacity", "input", () => {
    opacity = Number($("opacity").value);
    setOpacity(opacity);
  });
  on("compare", "change", () => compare($("compare").checked));
  on("split", "input", () => compare(true));
  on("size", "change", () => {
    if (source?.kind === "image") segmentImage();
  });
  for (const kind of ["mask", "ids", "overlay", "json", "csv"]) on(`save-${kind}`, "click", () => save(kind).catch(failed));

  on("stage", "keydown", (event) => {
    if (key(event)) event.preventDefault();
  });
  on("stage", "pointermove", (event) => {
    if (!$("divider").hasPointerCapture(event.pointerId)) point(stage.placeOf(event));
  });
  on("stage", "pointerleave", () => showPointer(null));
  on("stage", "blur", () => stage.moveCross(null));
  on("divider", "pointerdown", (event) => {
    $("divider").setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  on("divider", "pointermove", (event) => {
    if ($("divider").hasPointerCapture(event.pointerId)) splitAt(event);
  });

  video.addEventListener("resize", fitVideo); // also when a phone is turned
  video.addEventListener("loadedmetadata", fitVideo);
  for (const kind of ["play", "pause"]) {
    video.addEventListener(kind, () => { $("play").textContent = video.paused ? text.play : text.pause; });
  }
  video.addEventListener("pause", () => {
    // The frame that stays is presented once more, so that its mask follows.
    if (source?.kind === "video" && !video.seeking && video.src) video.currentTime += 0;
  });
  video.addEventListener("timeupdate", () => {
    if (!Number.isFinite(video.duration)) return;
    $("position").value = video.currentTime / video.duration;
    $("position").setAttribute("aria-valuetext", text.time(video.currentTime, video.duration));
    $("time").textContent = text.time(video.currentTime, video.duration);
  });

  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    openFile([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => openFile([...event.clipboardData.files]));
  document.addEventListener("visibilitychange", seenOrHidden);
  window.addEventListener("pagehide", () => camera.close());
}

async function start() {
  $("privacy").textContent = text.privacy[engine.place](location.host);
  if (engine.place === "server") {
    document.querySelector("header .icon").remove(); // a lock
    $("about").append(" · ", Object.assign(document.createElement("a"), { href: "docs", textContent: text.addresses }));
  }
  for (const [keys, does] of text.keyList) {
    const [term, description] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, description.textContent] = [keys, does];
    $("keys").append(term, description);
  }
  for (const id of ["network", "whole", "rate", "age", "input", "threads", "instructions", "isolated", "verification"]) {
    $(id).textContent = text.none;
  }
  setOpacity(opacity);
  bind();
  showStatus(text.starting);
  if (await engine.prepare()) return showStatus(text.reloading);
  window.evitseg = { stage, camera, get model() { return model; }, get source() { return source; } }; // for tests and for the curious
  await Promise.all([loadModel(), openExample()]);
}

start().catch(failed);
