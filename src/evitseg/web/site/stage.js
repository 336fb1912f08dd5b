// The image, the camera or the video with its mask above it. The browser composes them: the image is an element of its
// own, drawn at the screen's rate, and the mask a canvas that changes only when a new mask arrives.

const MOST_DRAWN = 2048; // longest side of the canvas; of a larger mask only some of the pixels are drawn
const NUDGE = 0.01;

/** Colours of the classes as pixels of a canvas; no colour for hidden and unknown classes. */
function colorTable(classes, hidden, length) {
  const colors = new Uint32Array(length);
  const bytes = new Uint8Array(colors.buffer);
  classes.forEach(({ index, color }) => {
    if (!hidden.has(index)) bytes.set([...color, 255], 4 * index);
  });
  return colors;
}

export class Stage {
  /** `elements`: frame, photo, video, overlay, divider, cross. */
  constructor(elements) {
    Object.assign(this, elements);
    this.pen = this.overlay.getContext("2d");
    this.classes = [];
    this.hidden = new Set();
    this.result = null;
    this.pixels = null;
    this.opacity = 0.55;
    this.split = null; // fraction of the width left of the line, or null
    this.cursor = null; // the cross, in fractions of the image
    this.isMirrored = false;
  }

  /** Show an image or the video, whose mask comes later. */
  show(kind, width, height) {
    this.photo.hidden = kind !== "image";
    this.video.hidden = kind === "image";
    this.frame.parentElement.style.setProperty("--ratio", width / height);
    this.frame.hidden = false;
    this.mirror(false);
  }

  /** Show as in a mirror, which is what people expect of a camera that looks at them. */
  mirror(is) {
    this.isMirrored = is;
    this.frame.classList.toggle("mirrored", is);
  }

  clear() {
    this.result = null;
    this.overlay.hidden = true;
  }

  draw(result) {
    this.result = result;
    this.redraw();
  }

  hide(indices, isShown) {
    for (const index of indices) {
      if (isShown) this.hidden.delete(index);
      else this.hidden.add(index);
    }
    this.redraw();
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    this.overlay.style.opacity = opacity;
  }

  setSplit(split) {
    this.split = split === null ? null : Math.min(1, Math.max(0, split));
    const isOn = this.split !== null;
    this.overlay.style.clipPath = isOn ? `inset(0 0 0 ${100 * this.split}%)` : "";
    this.divider.hidden = !isOn;
    if (isOn) this.divider.style.left = `${100 * this.split}%`;
  }

  redraw() {
    if (!this.result) return;
    const { mask, width, height } = this.result;
    const step = Math.max(1, Math.max(width, height) / MOST_DRAWN);
    const [columns, rows] = [Math.max(1, Math.round(width / step)), Math.max(1, Math.round(height / step))];
    if (!this.pixels || this.pixels.width !== columns || this.pixels.height !== rows) {
      [this.overlay.width, this.overlay.height] = [columns, rows];
      this.pixels = new ImageData(columns, rows);
    }
    const colors = colorTable(this.classes, this.hidden, mask.BYTES_PER_ELEMENT === 1 ? 256 : 65536);
    const out = new Uint32Array(this.pixels.data.buffer);
    if (columns === width && rows === height) {
      for (let i = 0; i < out.length; i++) out[i] = colors[mask[i]];
    } else {
      const across = Uint32Array.from({ length: columns }, (_, x) => Math.floor(((x + 0.5) * width) / columns));
      for (let y = 0, i = 0; y < rows; y++) {
        const start = Math.floor(((y + 0.5) * height) / rows) * width;
        for (let x = 0; x < columns; x++) out[i++] = colors[mask[start + across[x]]];
      }
    }
    this.pen.putImageData(this.pixels, 0, 0);
    this.overlay.hidden = false;
  }

  /** Fractions of the width and height of the image below a place on the screen, or null outside. */
  placeOf({ clientX, clientY }) {
    const box = this.frame.getBoundingClientRect();
    const [x, y] = [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
    if (!(x >= 0 && y >= 0 && x < 1 && y < 1)) return null;
    return [x, y];
  }

  /** The pixel and class at a place: {x, y, index}, or null without a mask. */
  at(place) {
    if (!place || !this.result) return null;
    const { mask, width, height } = this.result;
    const across = this.isMirrored ? 1 - place[0] : place[0];
    const x = Math.min(width - 1, Math.max(0, Math.floor(across * width)));
    const y = Math.min(height - 1, Math.max(0, Math.floor(place[1] * height)));
    return { x, y, index: mask[y * width + x] };
  }

  /** Move the cross by steps, or to the middle the first time; null hides it. */
  moveCross(steps) {
    const inside = (value) => Math.min(1 - NUDGE / 2, Math.max(NUDGE / 2, value));
    if (!steps) this.cursor = null;
    else if (!this.cursor) this.cursor = [0.5, 0.5];
    else this.cursor = this.cursor.map((value, axis) => inside(value + NUDGE * steps[axis]));
    this.cross.hidden = !this.cursor;
    if (this.cursor) {
      this.cross.style.left = `${100 * this.cursor[0]}%`;
      this.cross.style.top = `${100 * this.cursor[1]}%`;
    }
    return this.cursor;
  }

  /** A canvas with what is seen, without the line between before and after. */
  tinted() {
    const base = this.photo.hidden ? this.video : this.photo;
    const [width, height] = this.photo.hidden
      ? [base.videoWidth, base.videoHeight] : [base.naturalWidth, base.naturalHeight];
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d");
    pen.drawImage(base, 0, 0, width, height);
    if (this.result) {
      pen.globalAlpha = this.opacity;
      pen.drawImage(this.overlay, 0, 0, width, height);
    }
    return canvas;
  }
}
