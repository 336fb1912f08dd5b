// PNG files of masks: the chunks around what the core compresses.
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let c = byte;
  for (let bit = 0; bit < 8; bit++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c;
});

function chunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = kind.charCodeAt(i);
  bytes.set(content, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < bytes.length - 4; i++) crc = TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  view.setUint32(bytes.length - 4, ~crc >>> 0);
  return bytes;
}

/**
 * The parts of a PNG file of class indices.
 * @param {Uint8Array | Uint16Array} mask
 * @param {number[][] | null} colors of the palette; null for grey levels, which masks of 16 bits always have
 * @param {(pixels: Uint8Array, height: number, rowBytes: number, pixelBytes: number) => Uint8Array} compress
 */
export function pngParts(mask, width, height, colors, compress) {
  const pixelBytes = mask.BYTES_PER_ELEMENT;
  const indexed = pixelBytes === 1 && colors !== null;
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8 * pixelBytes, indexed ? 3 : 0, 0, 0, 0], 8);
  let pixels = mask;
  if (pixelBytes === 2) {
    pixels = new Uint8Array(2 * mask.length); // the higher byte first
    for (let i = 0; i < mask.length; i++) {
      pixels[2 * i] = mask[i] >> 8;
      pixels[2 * i + 1] = mask[i];
    }
  }
  const palette = new Uint8Array(768);
  palette.fill(255, 765); // 255 means "ignored"
  (colors ?? []).slice(0, 256).forEach((color, index) => palette.set(color, 3 * index));
  return [
    new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]),
    chunk("IHDR", header),
    ...(indexed ? [chunk("PLTE", palette)] : []),
    chunk("tEXt", new TextEncoder().encode("Software\0evitseg")), // so that evitseg takes it for a result, not for an image
    chunk("IDAT", compress(pixels, height, width * pixelBytes, pixelBytes)),
    chunk("IEND", new Uint8Array(0)),
  ];
}
