"use strict";

const LONGEST_SIDE = 2048; // of the canvas; a larger image is shown smaller
const byId = (id) => document.getElementById(id);
let shown = null; // {photo, mask, width, height}: what the canvas shows
let newest = 0; // an answer to an older image is not shown
let maskUrl = "";

function say(text, isWrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", isWrong);
}

async function decoded(blob) {
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    return null; // a format that this browser does not know, such as TIFF
  }
}

function draw() {
  if (!shown) return;
  const canvas = byId("canvas");
  const scale = Math.min(1, LONGEST_SIDE / Math.max(shown.width, shown.height));
  canvas.width = Math.max(1, Math.round(shown.width * scale));
  canvas.height = Math.max(1, Math.round(shown.height * scale));
  const pen = canvas.getContext("2d");
  pen.globalAlpha = 1;
  pen.imageSmoothingEnabled = true;
  if (shown.photo) pen.drawImage(shown.photo, 0, 0, canvas.width, canvas.height);
  pen.globalAlpha = shown.photo ? byId("opacity").value / 100 : 1;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(shown.mask, 0, 0, canvas.width, canvas.height);
}

function swatch([red, green, blue]) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 1 1");
  svg.setAttribute("aria-hidden", "true");
  const square = document.createElementNS(space, "rect");
  square.setAttribute("width", "1");
  square.setAttribute("height", "1");
  square.setAttribute("fill", `rgb(${red},${green},${blue})`);
  svg.append(square);
  return svg;
}

function percent(fraction) {
  return fraction < 0.001 ? "<0.1 %" : `${(100 * fraction).toFixed(1)} %`;
}

function legend(classes) {
  byId("legend").replaceChildren(
    ...classes.map((each) => {
      const row = document.createElement("tr");
      const name = document.createElement("td");
      const fraction = document.createElement("td");
      name.append(swatch(each.color), each.name);
      fraction.textContent = percent(each.fraction);
      row.append(name, fraction);
      return row;
    }),
  );
}

function authorized() {
  const key = byId("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function segment(file) {
  const turn = ++newest;
  say(`Segmenting ${file.name || "the image"} …`);
  const start = performance.now();
  let answer;
  try {
    answer = await fetch("v1/segment", {
      method: "POST",
      body: file,
      headers: { Accept: "application/json", "Content-Type": "application/octet-stream", ...authorized() },
    });
  } catch {
    if (turn === newest) say("The service does not answer.", true);
    return;
  }
  const content = await answer.json().catch(() => ({ detail: `The service answered with status ${answer.status}.` }));
  if (turn !== newest) return;
  if (!answer.ok) {
    if (answer.status === 401) byId("key-row").hidden = false;
    say([content.detail, content.remedy && `${content.remedy}`].filter(Boolean).join(" "), true);
    return;
  }
  const bytes = Uint8Array.from(atob(content.mask.data), (letter) => letter.charCodeAt(0));
  const png = new Blob([bytes], { type: "image/png" });
  const [photo, mask] = await Promise.all([decoded(file), decoded(png)]);
  if (turn !== newest) return;
  if (shown) for (const each of [shown.photo, shown.mask]) each?.close();
  shown = { photo, mask, width: content.image.width, height: content.image.height };
  URL.revokeObjectURL(maskUrl);
  maskUrl = URL.createObjectURL(png);
  byId("mask").href = maskUrl;
  byId("mask").download = `${(file.name || "image").replace(/\.[^.]*$/, "")}_mask.png`;
  legend(content.classes);
  byId("result").hidden = false;
  draw();
  const network = content.timing_ms.network.toFixed(0);
  const total = (performance.now() - start).toFixed(0);
  const size = `${content.image.width}×${content.image.height}`;
  say([`${size} pixels in ${total} ms, of which the network took ${network} ms.`, ...content.warnings].join(" "));
}

byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) segment(event.target.files[0]);
});
byId("opacity").addEventListener("input", draw);
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) segment(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) segment(event.clipboardData.files[0]);
});
byId("form").addEventListener("submit", (event) => event.preventDefault());

fetch("openapi.json")
  .then((answer) => answer.json())
  .then((about) => {
    byId("model").textContent = about.info.description;
  });
