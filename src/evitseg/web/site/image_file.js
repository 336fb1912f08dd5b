// Files of images as the browser shows them.

/** The image of a file, whose address is to be revoked; null if the browser does not know its format. */
export async function decoded(file) {
  if (!file) return null;
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
    return image;
  } catch {
    URL.revokeObjectURL(image.src);
    return null;
  }
}

/** Whether a file is an animation: a GIF, WebP, PNG or AVIF of several frames. */
export async function isAnimated(file) {
  const head = await characters(file.slice(0, 4096));
  if (head.startsWith("GIF8")) return (await characters(file)).split("!\xf9\x04").length > 2; // one such mark per frame
  if (head.slice(8, 16) === "WEBPVP8X") return (head.charCodeAt(20) & 2) !== 0;
  return head.slice(4, 12) === "ftypavis" || (head.slice(1, 4) === "PNG" && head.includes("acTL"));
}

async function characters(blob) {
  const decoder = new TextDecoder("latin1"); // in browsers Windows-1252, which differs only from 0x80 to 0x9f
  return decoder.decode(await blob.arrayBuffer());
}

/** The first frame of an animation as a PNG file, which is what the network sees; null if it cannot be decoded. */
export async function firstFrame(file) {
  try {
    const frame = await createImageBitmap(file);
    const canvas = new OffscreenCanvas(frame.width, frame.height);
    canvas.getContext("2d").drawImage(frame, 0, 0);
    frame.close();
    return await canvas.convertToBlob();
  } catch {
    return null;
  }
}
