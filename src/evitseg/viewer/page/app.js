// The page of `evitseg view`: an image of any size with its mask.

import { MaskLayer } from "./mask_layer.js";
import { Legend, showBadge, showDetails, showPointer, showScale, showStatus } from "./panel.js";
import { $, pause, pngOf, saveFile, withLegend } from "./parts.js";
import { saveMask } from "./save.js";

const POLL_MS = 700;
const SAMPLES = 160; // points along each side of the view that its fractions are counted from

async function json(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

async function start() {
  let isOpen = false;
  const opening = json("about.json").finally(() => { isOpen = true; });
  while (!isOpen) {
    showStatus(await json("status.json"));
    await Promise.race([opening.catch(() => null), pause(POLL_MS)]);
  }
  run(await opening);
}

function run(about) {
  showDetails(about);
  const { width, height, tile, levels, classes } = about;
  let isDue = false;
  const layer = new MaskLayer(about, () => {
    if (isDue) return;
    isDue = true;
    setTimeout(() => {
      isDue = false;
      viewer.forceRedraw();
      count();
    }, 120);
  });
  const legend = new Legend(classes, (indices, isShown) => {
    layer.show(indices, isShown);
    viewer.forceRedraw();
  });
  const viewer = OpenSeadragon({
    element: $("view"),
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: true,
    navigatorPosition: "TOP_RIGHT",
    navigatorSizeRatio: 0.14,
    navigatorAutoFade: false,
    maxZoomPixelRatio: 32,
    minZoomImageRatio: 0.8,
    visibilityRatio: 0.3,
    animationTime: 0.5,
    timeout: 600_000,
    imageLoaderLimit: 6,
    maxImageCacheCount: 300,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    tileSources: {
      width, height, tileSize: tile, tileOverlap: 0, minLevel: 0, maxLevel: levels - 1,
      getTileUrl: (level, x, y) => `image/${levels - 1 - level}/${y}/${x}`,
    },
  });
  window.evitseg = { viewer, layer, about }; // for tests and for the curious
  let fractions = [];
  let seenPreview = false;
  let status = null;
  let drawnZoom = 0;

  viewer.addOnceHandler("open", () => {
    viewer.canvas.focus();
    viewer.addTiledImage({ tileSource: layer.source(), opacity: $("opacity").value / 100, success: follow });
  });
  viewer.addHandler("tile-unloaded", (event) => layer.unloaded(event));
  for (const each of [viewer, viewer.navigator]) each.addHandler("tile-drawing", (event) => layer.drawing(event));
  viewer.addHandler("animation-finish", () => {
    count();
    if (seenPreview) sharpen();
  });
  viewer.addHandler("update-viewport", () => {
    if (zoom() === drawnZoom) return;
    drawnZoom = zoom();
    smooth();
    scale();
  });

  function mask() {
    return viewer.world.getItemAt(1);
  }

  /** Screen pixels per image pixel. */
  function zoom() {
    const image = viewer.world.getItemAt(0);
    return image ? image.viewportToImageZoom(viewer.viewport.getZoom(true)) : 1;
  }

  function level() {
    return Math.max(0, Math.floor(-Math.log2(zoom() * devicePixelRatio)));
  }

  function smooth() {
    viewer.drawer.setImageSmoothingEnabled(zoom() * devicePixelRatio < 1.5); // beyond, single pixels are shown
  }

  function scale() {
    showScale(about.meters_per_pixel && about.meters_per_pixel / zoom());
  }

  /** The part of the image in view, in its pixels. */
  function part() {
    const image = viewer.world.getItemAt(0);
    const { x, y, width: w, height: h } = image.viewportToImageRectangle(viewer.viewport.getBounds(true));
    const [left, top] = [Math.max(0, Math.floor(x)), Math.max(0, Math.floor(y))];
    const [right, bottom] = [Math.min(width, Math.ceil(x + w)), Math.min(height, Math.ceil(y + h))];
    return { top, left, height: Math.max(0, bottom - top), width: Math.max(0, right - left) };
  }

  function count() {
    if (!viewer.world.getItemAt(0)) return;
    const { top, left, height: rows, width: columns } = part();
    const counts = new Array(classes.length).fill(0);
    let [total, previews] = [0, 0];
    const z = level();
    for (let i = 0; i < SAMPLES; i++) {
      for (let j = 0; j < SAMPLES; j++) {
        const found = layer.at(left + ((j + 0.5) * columns) / SAMPLES, top + ((i + 0.5) * rows) / SAMPLES, z);
        if (!found) continue;
        total++;
        if (!found.isExact) previews++;
        if (found.index < counts.length) counts[found.index]++;
      }
    }
    fractions = counts.map((n) => (total ? n / total : 0));
    seenPreview = previews > 0;
    legend.inView(fractions);
    badge();
  }

  function badge() {
    if (!seenPreview) return showBadge("");
    const isFailed = status?.phase === "failed";
    showBadge(isFailed ? "Preview, not the exact mask" : "Preview: the exact mask follows");
  }

  async function sharpen() {
    if (!await layer.refresh(part())) return;
    viewer.forceRedraw();
    count();
  }

  // Status, and tiles that have become exact.
  async function follow() {
    let changes = -1;
    for (;;) {
      try {
        status = await json("status.json");
      } catch {
        showStatus({ phase: "failed", problem: "The viewer has ended: no answer from evitseg.", seconds_left: null });
        return;
      }
      showStatus(status, about.mask);
      legend.ofImage(status.fractions, status.fractions_are_preview);
      badge();
      if (status.changes !== changes) {
        changes = status.changes;
        await sharpen();
      }
      await pause(status.phase === "ready" ? 4 * POLL_MS : POLL_MS);
    }
  }

  // The pointer.
  let asked = 0;
  new OpenSeadragon.MouseTracker({
    element: viewer.container,
    moveHandler: ({ position }) => point(position),
    leaveHandler: () => $("pointer").replaceChildren(),
  });

  async function point(position) {
    const image = viewer.world.getItemAt(0);
    if (!image) return;
    const at = image.viewerElementToImageCoordinates(position);
    const [x, y] = [Math.floor(at.x), Math.floor(at.y)];
    const number = ++asked;
    if (x < 0 || y < 0 || x >= width || y >= height) return $("pointer").replaceChildren();
    const show = (place) => showPointer(x, y, layer.at(x, y, level()), classes, place);
    show(null);
    if (about.crs === null) return;
    await pause(60);
    if (number !== asked) return;
    const place = await json(`place.json?x=${at.x}&y=${at.y}`);
    if (number === asked) show(place);
  }

  // Controls and keys.
  let opacity = Number($("opacity").value);
  function setOpacity(value) {
    $("opacity").value = value;
    $("opacity-value").textContent = `${value} %`;
    mask()?.setOpacity(value / 100);
  }
  $("opacity").addEventListener("input", () => {
    opacity = Number($("opacity").value);
    setOpacity(opacity);
  });
  const stem = about.name.replace(/\.[^.]*$/, "");
  async function saveView() {
    const canvas = withLegend(viewer.drawer.canvas, classes, fractions, layer.hidden);
    saveFile(await pngOf(canvas), `${stem}_view.png`);
  }
  $("save-view").addEventListener("click", saveView);
  $("save-mask").addEventListener("click", () => saveMask(part(), about, ""));

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    switch (event.key) {
      case "m": case "M": setOpacity(Number($("opacity").value) ? 0 : opacity || 55); return true;
      case "[": case "]":
        opacity = Math.max(0, Math.min(100, Number($("opacity").value) + (event.key === "[" ? -10 : 10)));
        setOpacity(opacity);
        return true;
      case "s": case "S": saveView(); return true;
      case "+": case "=": viewer.viewport.zoomBy(1.5); return true;
      case "-": case "_": viewer.viewport.zoomBy(1 / 1.5); return true;
      case "0": viewer.viewport.goHome(); return true;
      case "1": {
        const image = viewer.world.getItemAt(0);
        viewer.viewport.zoomTo(image.imageToViewportZoom(1 / devicePixelRatio));
        return true;
      }
      default: return false;
    }
  }
  // OpenSeadragon's S moves, R turns and F mirrors the image, and its + and - are where an American keyboard has them.
  viewer.addHandler("canvas-key", (event) => {
    if ("sSrRfF+=-_0".includes(event.originalEvent.key)) event.preventDefaultAction = true;
  });
  document.addEventListener("keydown", (event) => {
    if (key(event)) event.preventDefault();
  });
}

start().catch((error) => {
  showStatus({ phase: "failed", problem: String(error.message ?? error), seconds_left: null });
});
