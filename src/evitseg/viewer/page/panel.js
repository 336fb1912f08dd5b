// The panel beside the image: legend, progress and what is under the pointer.

import { $, percent, swatch } from "./parts.js";

export class Legend {
  /** `toggled` is called with the indices of classes and whether they are shown. */
  constructor(classes, toggled) {
    this.rows = classes.map(({ name, color }, index) => {
      const row = document.createElement("tr");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      box.addEventListener("change", () => toggled([index], box.checked));
      const label = document.createElement("label");
      label.append(box, swatch(color), name);
      const cells = ["td", "td", "td"].map((kind) => document.createElement(kind));
      cells[0].append(label);
      row.append(...cells);
      return { row, box, name, view: cells[1], image: cells[2] };
    });
    $("legend").append(...this.rows.map(({ row }) => row));
    for (const [id, isShown] of [["all", true], ["none", false]]) {
      $(id).addEventListener("click", () => {
        for (const { box } of this.rows) box.checked = isShown;
        toggled(this.rows.map((_, index) => index), isShown);
      });
    }
  }

  /** Fractions per class index of what is in view. */
  inView(fractions) {
    this.rows.forEach(({ view, row, image }, index) => {
      view.textContent = percent(fractions[index]);
      row.classList.toggle("absent", !view.textContent && !image.textContent);
    });
  }

  /** Fractions of the whole image by name; about, if they are those of a preview. */
  ofImage(fractions, arePreview) {
    if (!fractions) return;
    for (const { name, image } of this.rows) {
      const text = percent(fractions[name]);
      image.textContent = text && arePreview ? `≈ ${text}` : text;
    }
  }
}

const PHASES = {
  opening: "Opening the image…",
  reading: "Reading the image once, for small copies",
  cutting: "Reading the mask",
  segmenting: "Preview. Computing the exact mask",
  rendering: "Rendering the exact mask",
  ready: "The mask is exact.",
  failed: "The mask is a preview.",
};

function time(seconds) {
  if (seconds < 100) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

export function showStatus(status, mask) {
  const isWorking = !["ready", "failed"].includes(status.phase);
  let text = status.phase === "ready" && mask ? `Mask: ${mask}` : PHASES[status.phase];
  if (isWorking && status.phase !== "opening") text += `: ${Math.floor(100 * status.fraction)} %`;
  if (status.seconds_left !== null) text += `, about ${time(status.seconds_left)} left`;
  if ($("status").textContent !== text) $("status").textContent = text;
  $("progress").hidden = !isWorking;
  if (isWorking && status.phase !== "opening") $("progress").value = status.fraction;
  $("problem").hidden = !status.problem;
  $("problem").textContent = status.problem;
}

export function showBadge(text) {
  $("badge").hidden = !text;
  if ($("badge").textContent !== text) $("badge").textContent = text;
}

export function showDetails(about) {
  document.title = `${about.name} – evitseg view`;
  $("name").textContent = about.name;
  const parts = [`${about.width} × ${about.height} pixels`];
  if (about.model) parts.push(about.model);
  if (about.crs) parts.push(about.crs);
  $("details").textContent = parts.join(" · ");
  $("version").textContent = `evitseg ${about.version}`;
}

/** `found`: the class under the pointer; `place`: coordinates on earth, if they are known. */
export function showPointer(x, y, found, classes, place) {
  const line = $("pointer");
  line.replaceChildren();
  const known = found && classes[found.index];
  if (known) line.append(swatch(known.color), `${known.name}${found.isExact ? "" : " (preview)"} · `);
  else if (found) line.append("no data · ");
  let text = `x ${x}, y ${y}`;
  if (place?.x !== undefined) text += ` · ${coordinate(place.x)}, ${coordinate(place.y)}`;
  if (place?.longitude !== undefined) {
    const [south, west] = [place.latitude < 0, place.longitude < 0];
    text += ` · ${Math.abs(place.latitude).toFixed(6)}° ${south ? "S" : "N"}`;
    text += ` ${Math.abs(place.longitude).toFixed(6)}° ${west ? "W" : "E"}`;
  }
  line.append(text);
}

function coordinate(value) {
  return Math.abs(value) < 1000 ? value.toFixed(6) : value.toFixed(2);
}

/** A bar of a round length; `metersPerPixel` of the screen. */
export function showScale(metersPerPixel) {
  const bar = $("scale");
  bar.hidden = !metersPerPixel;
  if (!metersPerPixel) return;
  const most = 160 * metersPerPixel;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((n) => n * power).find((n) => n <= most) ?? power;
  const [unit, factor] = length >= 1000 ? ["km", 1e-3] : length >= 1 ? ["m", 1] : length >= 1e-3 ? ["mm", 1e3] : ["µm", 1e6];
  bar.firstElementChild.textContent = `${Number((length * factor).toPrecision(3))} ${unit}`;
  bar.firstElementChild.style.width = `${length / metersPerPixel}px`;
}
