// Saving what is in view: the picture as it is seen, with a legend, and the mask as class indices.

import { percent } from "./panel.js";

function download(address, name) {
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

/** The canvas of the view above a legend of the classes that are seen in it. */
export function pictureOf(view, classes, fractions, hidden) {
  const entries = classes
    .map(({ name, color }, index) => ({ name, color, index, fraction: fractions[index] ?? 0 }))
    .filter(({ index, fraction }) => fraction > 0 && !hidden.has(index))
    .sort((a, b) => b.fraction - a.fraction);
  const size = Math.max(12, Math.round(view.width / 90));
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const font = `${size}px system-ui, sans-serif`;
  context.font = font;
  const rows = [];
  let left = Infinity;
  for (const entry of entries) {
    const text = `${entry.name} ${percent(entry.fraction)}`;
    const width = 3 * size + context.measureText(text).width;
    if (left + width > view.width) {
      rows.push([]);
      left = 0;
    }
    rows.at(-1).push({ ...entry, text, left });
    left += width;
  }
  [canvas.width, canvas.height] = [view.width, view.height + Math.ceil(rows.length * 1.6 * size + (rows.length ? size : 0))];
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(view, 0, 0);
  context.font = font;
  context.textBaseline = "middle";
  rows.forEach((row, number) => {
    const top = view.height + size / 2 + number * 1.6 * size;
    for (const { color: [r, g, b], text, left: x } of row) {
      context.fillStyle = `rgb(${r} ${g} ${b})`;
      context.fillRect(x + size / 2, top, size, size);
      context.fillStyle = "#111";
      context.fillText(text, x + 1.9 * size, top + size / 2);
    }
  });
  return canvas;
}

export async function saveView(canvas, name) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const address = URL.createObjectURL(blob);
  download(address, name);
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** The part of the mask in view, at a level at which it has at most this many pixels. */
const MOST_PIXELS = 2 ** 24;

export function saveMask({ top, left, height, width }, about, name) {
  let level = 0;
  while ((height * width) / 4 ** level > MOST_PIXELS && level < about.levels - 1) level++;
  const factor = 2 ** level;
  const [rows, columns] = [about.height, about.width].map((side) => Math.ceil(side / factor));
  const [y, x] = [Math.min(rows - 1, Math.floor(top / factor)), Math.min(columns - 1, Math.floor(left / factor))];
  const part = new URLSearchParams({
    level, top: y, left: x,
    height: Math.max(1, Math.min(rows - y, Math.ceil(height / factor))),
    width: Math.max(1, Math.min(columns - x, Math.ceil(width / factor))),
  });
  download(`mask.png?${part}`, name);
}
