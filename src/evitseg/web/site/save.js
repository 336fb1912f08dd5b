// What can be saved: the numbers of a mask. The mask itself is encoded by the model.

/** Pixels and fractions per class, and how they were made, as the JSON answer of `evitseg serve` names them. */
export function numbers(result, model, name, isVerified) {
  const whole = result.width * result.height;
  return {
    image: { name, width: result.width, height: result.height },
    model: { name: model.name },
    classes: model.classes.map(({ index, name: label, color }) => ({
      id: index, name: label, color, fraction: result.pixels[index] / whole, pixels: result.pixels[index],
    })),
    network_input: { width: result.networkWidth, height: result.networkHeight },
    timing_ms: Object.fromEntries(
      Object.entries(result.milliseconds).map(([stage, value]) => [stage, Math.round(100 * value) / 100]),
    ),
    device: {
      instruction_set: model.info.instructionSet ?? null,
      threads: model.info.threads ?? null,
      verified: isVerified,
    },
  };
}

const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

/** The classes as CSV with a header. */
export function table({ classes }) {
  const rows = classes.map(({ id, name, color, pixels, fraction }) =>
    [id, cell(name), ...color, pixels, fraction.toFixed(6)].join(","));
  return ["id,name,red,green,blue,pixels,fraction", ...rows, ""].join("\r\n");
}
