// Makes JPEG files of frames, in a worker: encoding would hold up the page.

const QUALITY = 0.92;
const canvas = new OffscreenCanvas(1, 1);
const pen = canvas.getContext("2d", { willReadFrequently: true });

addEventListener("message", async ({ data: { frame, port } }) => {
  try {
    const { width, height } = frame;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    pen.drawImage(frame, 0, 0);
    frame.close();
    port.postMessage(await canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY }));
  } catch {
    port.postMessage(null);
  }
});
