// Saving what is in view: the mask as class indices.

import { saveFrom } from "./parts.js";

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
  saveFrom(`mask.png?${part}`, name);
}
