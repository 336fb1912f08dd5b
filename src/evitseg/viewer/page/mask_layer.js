// The mask as a layer of OpenSeadragon. Tiles arrive as class indices and are coloured here, so that classes can be
// switched on and off, and the class under the pointer is known, without asking the server again.

const placeOf = (address) => address.split("/").slice(-3).map(Number);

export class MaskLayer {
  /** `changed` is called when tiles have arrived, become exact or were coloured anew. */
  constructor(about, changed) {
    this.about = about;
    this.changed = changed;
    this.tiles = new Map(); // by address: {indices, isExact, width, height}
    this.hidden = new Set();
    this.aborts = new WeakMap();
    this.painted = new WeakMap();
    this.recolored = 0;
    this.colors = new Uint32Array(1 << (8 * about.bytes_per_index));
    this.recolor();
  }

  /** A tile source for OpenSeadragon, whose levels count from the coarsest. */
  source() {
    const { width, height, tile, levels } = this.about;
    const layer = this;
    return {
      width, height, tileSize: tile, tileOverlap: 0, minLevel: 0, maxLevel: levels - 1,
      getTileUrl: (level, x, y) => `mask/${levels - 1 - level}/${y}/${x}`,
      hasTransparency: () => true,
      downloadTileStart(job) {
        const abort = new AbortController();
        layer.aborts.set(job, abort);
        layer.fetch(job.src, abort.signal).then(
          (context) => job.finish(context, null, "context2d"),
          (error) => job.fail(String(error), null),
        );
      },
      downloadTileAbort(job) { layer.aborts.get(job)?.abort(); },
    };
  }

  /** A canvas with a tile. */
  async fetch(address, signal) {
    let tile = this.tiles.get(address);
    if (!tile?.indices) {
      const response = await fetch(address, { signal });
      if (!response.ok) throw new Error(await response.text());
      const content = await response.arrayBuffer();
      const [height, width] = this.sizeOfTile(...placeOf(address));
      tile = {
        width, height,
        isExact: response.headers.get("X-Mask") === "exact",
        indices: content.byteLength ? this.indicesIn(content) : null,
      };
      this.tiles.set(address, tile);
    }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [tile.width, tile.height];
    const context = canvas.getContext("2d");
    if (tile.indices) context.putImageData(this.colored(tile), 0, 0);
    this.changed();
    return context;
  }

  unloaded({ tile }) { this.tiles.delete(tile.getUrl()); }

  /** Colour a canvas anew before it is drawn, if its tile or the colours have changed since. */
  drawing({ tile, rendered }) {
    const known = this.tiles.get(tile.getUrl());
    if (!known?.indices || this.painted.get(rendered) === this.stampOf(known)) return;
    this.painted.set(rendered, this.stampOf(known));
    rendered.putImageData(this.colored(known), 0, 0);
  }

  stampOf({ isExact }) { return 2 * this.recolored + isExact; }

  indicesIn(content) {
    return this.about.bytes_per_index === 1 ? new Uint8Array(content) : new Uint16Array(content);
  }

  sizeOfTile(level, row, column) {
    const { width, height, tile } = this.about;
    const side = (whole, at) => Math.min(tile, Math.ceil(whole / 2 ** level) - at * tile);
    return [side(height, row), side(width, column)];
  }

  /** Ask whether tiles in a part of the image have become exact. Returns whether any has. */
  async refresh({ top, left, height, width }) {
    const { tile: side } = this.about;
    const waiting = [...this.tiles].filter(([address, { isExact }]) => {
      const [level, row, column] = placeOf(address);
      const step = side * 2 ** level;
      return !isExact && row * step < top + height && (row + 1) * step > top
        && column * step < left + width && (column + 1) * step > left;
    }).map(([address]) => address);
    let found = false;
    const work = async () => {
      for (let address = waiting.pop(); address !== undefined; address = waiting.pop()) {
        const response = await fetch(`${address}?exact=1`);
        const content = response.ok ? await response.arrayBuffer() : null;
        const tile = this.tiles.get(address);
        if (!tile || !content?.byteLength) continue;
        tile.isExact = true;
        tile.indices = this.indicesIn(content);
        found = true;
      }
    };
    await Promise.all([work(), work(), work()]);
    return found;
  }

  show(indices, isShown) {
    for (const index of indices) isShown ? this.hidden.delete(index) : this.hidden.add(index);
    this.recolor();
    this.changed();
  }

  recolor() {
    this.recolored++;
    const isLittle = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
    this.colors.fill(0); // transparent: hidden classes, and pixels without data
    this.about.classes.forEach(({ color: [r, g, b] }, index) => {
      if (this.hidden.has(index)) return;
      this.colors[index] = isLittle ? ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0
        : ((r << 24) | (g << 16) | (b << 8) | 255) >>> 0;
    });
  }

  colored({ indices, width, height }) {
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const { colors } = this;
    for (let i = 0; i < pixels.length; i++) pixels[i] = colors[indices[i]];
    return image;
  }

  /** The class index of a pixel of the image at about this level, and whether it is exact; null if not loaded. */
  at(x, y, level) {
    const { tile: side, levels } = this.about;
    for (let z = Math.max(0, level); z < levels; z++) {
      const [column, row] = [Math.floor(x / 2 ** z), Math.floor(y / 2 ** z)];
      const tile = this.tiles.get(`mask/${z}/${Math.floor(row / side)}/${Math.floor(column / side)}`);
      if (!tile?.indices) continue;
      return { index: tile.indices[(row % side) * tile.width + (column % side)], isExact: tile.isExact };
    }
    return null;
  }
}
