// Pixels of everything that shows an image, read in a worker.
import { EvitsegError } from "./errors.js";

let canvas = null;

function drawn(source, width, height) {
  canvas ??= new OffscreenCanvas(width, height);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d", { willReadFrequently: true, desynchronized: true });
  if (context === null) throw new EvitsegError("image", `an image of ${width} × ${height} pixels is too large for this browser`);
  context.globalCompositeOperation = "copy";
  try {
    context.drawImage(source, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  } catch {
    throw new EvitsegError("image", `the pixels of an image of ${width} × ${height} cannot be read; choose a smaller image`);
  }
}

/**
 * { data, width, height } of a Blob, an ImageBitmap, a VideoFrame or pixels; 3 or 4 bytes a pixel. Closes a bitmap and a frame.
 * The canvas of large images is given back, because browsers count its memory.
 */
export async function readPixels(image) {
  if (image instanceof Blob) {
    let bitmap;
    try {
      // Bytes as they are in the file, which is how the network was trained.
      bitmap = await createImageBitmap(image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    } catch {
      throw new EvitsegError("image", "the file is not an image that this browser can decode");
    }
    return readPixels(bitmap);
  }
  if (typeof image.close === "function") {
    const width = image.displayWidth ?? image.width;
    const height = image.displayHeight ?? image.height;
    try {
      return { data: drawn(image, width, height), width, height };
    } finally {
      image.close();
      if (width * height > 4 << 20) canvas = null;
    }
  }
  const { data, width, height } = image;
  if (!(width >= 1 && height >= 1) || (data.length !== 4 * width * height && data.length !== 3 * width * height))
    throw new EvitsegError("argument", `${data.length} bytes are not the RGB or RGBA pixels of ${width} × ${height}`);
  return { data, width, height };
}
