// PNG files of class indices, as evitseg writes them. A browser's own decoder gives colours, and of two bytes only one.

const UP = 2; // a row is stored as it is, or as differences to the row above

/** { mask, width, height, compressed } of the bytes of a file; `compressed` is the content of its IDAT chunks. */
export async function readPng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const [width, height, pixelBytes] = [view.getUint32(16), view.getUint32(20), bytes[24] / 8];
  const parts = [];
  for (let at = 8; at < bytes.length; at += 12 + view.getUint32(at)) {
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const compressed = new Blob(parts);
  const stored = compressed.stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stored).arrayBuffer());
  const length = width * pixelBytes;
  const pixels = new Uint8Array(height * length);
  for (let y = 0; y < height; y++) {
    const from = y * (length + 1);
    const to = y * length;
    pixels.set(rows.subarray(from + 1, from + 1 + length), to);
    if (rows[from] === UP && y > 0) for (let x = to; x < to + length; x++) pixels[x] += pixels[x - length];
  }
  if (pixelBytes === 1) return { mask: pixels, width, height, compressed: await bytesOf(compressed) };
  const mask = new Uint16Array(width * height);
  for (let i = 0; i < mask.length; i++) mask[i] = (pixels[2 * i] << 8) | pixels[2 * i + 1]; // the higher byte first
  return { mask, width, height, compressed: await bytesOf(compressed) };
}

async function bytesOf(blob) {
  return new Uint8Array(await blob.arrayBuffer());
}
