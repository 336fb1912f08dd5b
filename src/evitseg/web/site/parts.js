// Small parts that the pages of evitseg share.

export const $ = (id) => document.getElementById(id);

/** A fraction for people; "" for none. */
export function percent(fraction) {
  if (!fraction) return "";
  return fraction < 0.001 ? "<0.1 %" : `${(100 * fraction).toFixed(1)} %`;
}

export function swatch([r, g, b]) {
  const box = document.createElement("span");
  box.className = "swatch";
  box.style.background = `rgb(${r} ${g} ${b})`;
  return box;
}

/** Let the browser save what is at an address; "" for the name that the server gives it. */
export function saveFrom(address, name) {
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

/** Let the browser save a file. */
export function saveFile(blob, name) {
  const address = URL.createObjectURL(blob);
  saveFrom(address, name);
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** The pixels of a canvas as a PNG. */
export function pngOf(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** A canvas above a legend of the classes that are seen in it. */
export function withLegend(view, classes, fractions, hidden) {
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
  let widest = view.width; // a small image may be narrower than an entry of its legend
  for (const entry of entries) {
    const text = `${entry.name} ${percent(entry.fraction)}`;
    const width = 3 * size + context.measureText(text).width;
    if (left + width > view.width) {
      rows.push([]);
      left = 0;
    }
    rows.at(-1).push({ ...entry, text, left });
    left += width;
    widest = Math.max(widest, Math.ceil(width));
  }
  [canvas.width, canvas.height] = [widest, view.height + Math.ceil(rows.length * 1.6 * size + (rows.length ? size : 0))];
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
