// The panel beside the image: classes, numbers and status.

import { $, percent, swatch } from "./parts.js";
import { text } from "./text.js";

const MANY = 24; // from so many classes on, those that do not occur are not listed

export class Legend {
  /** `toggled` is called with the indices of classes and whether they are shown. */
  constructor(toggled) {
    this.toggled = toggled;
    this.rows = [];
    for (const [id, isShown] of [["all", true], ["none", false]]) {
      $(id).addEventListener("click", () => {
        for (const { box } of this.rows) box.checked = isShown;
        toggled(this.rows.map(({ index }) => index), isShown);
      });
    }
  }

  setClasses(classes) {
    this.rows = classes.map(({ index, name, color }) => {
      const row = document.createElement("tr");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      box.addEventListener("change", () => this.toggled([index], box.checked));
      const label = document.createElement("label");
      label.append(box, swatch(color), name);
      const cells = [document.createElement("th"), document.createElement("td")];
      cells[0].scope = "row";
      cells[0].append(label);
      row.append(...cells);
      return { index, name, row, box, fraction: cells[1] };
    });
    $("legend").replaceChildren(...this.rows.map(({ row }) => row));
    $("legend").classList.toggle("many", classes.length >= MANY);
  }

  show(fractions) {
    for (const { index, row, fraction } of this.rows) {
      const shown = percent(fractions[index]);
      if (fraction.textContent !== shown) fraction.textContent = shown;
      row.classList.toggle("absent", !shown);
    }
  }
}

function number(id, value) {
  if ($(id).textContent !== value) $(id).textContent = value;
}

/** Hide a number and its name. */
function hideRow(id, isHidden) {
  for (const cell of [$(id), $(id).previousElementSibling]) cell.hidden = isHidden;
}

/** Numbers of the newest mask, or of the newest masks of a camera or a video. */
export function showSpeed({ network, total, perSecond = null, age = null, result }) {
  const or = (value, format) => (value === null ? text.none : format(value));
  number("network", or(network, text.milliseconds));
  number("whole", or(total, text.milliseconds));
  number("rate", or(perSecond, text.perSecond));
  number("age", or(age, text.milliseconds));
  number("input", result.networkWidth ? text.sides(result.networkWidth, result.networkHeight) : text.none);
}

/** What computes the masks: this device, or a service, of which less is known. */
export function showDevice({ info, verification, isVerified }) {
  const { engine, threads, cores, instructionSet, isolated } = info;
  for (const id of ["instructions", "isolated", "verification"]) hideRow(id, engine !== undefined);
  hideRow("engine", engine === undefined);
  number("engine", engine ?? "");
  number("threads", text.threadsOf(threads, cores));
  number("instructions", instructionSet ?? "");
  number("isolated", text.isIsolated(isolated));
  const checked = verification ? text.agrees(verification.largestDifference) : text.notVerified;
  number("verification", isVerified === false ? text.disagrees : checked);
  $("verification").classList.toggle("wrong", isVerified === false);
}

/** A sentence for everybody; screen readers read it out. */
export function showStatus(sentence) {
  number("status", sentence);
}

/** A fraction of the work that is done, null if it is unknown, undefined if there is none. */
export function showProgress(fraction) {
  $("progress").hidden = fraction === undefined;
  if (typeof fraction === "number") $("progress").value = fraction;
  else $("progress").removeAttribute("value");
}

/** A problem, with a button that does something about it, or none for "". */
export function showProblem(sentence, label = "", action = null) {
  $("problem").hidden = !sentence;
  number("problem-text", sentence);
  $("remedy").hidden = !action;
  $("remedy").textContent = label;
  $("remedy").onclick = action;
}

/** Ask for an API key; `given` is called with it. */
export function showKeyForm(given) {
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    $("key-form").hidden = true;
    given($("key").value.trim());
    $("key").value = "";
  };
}

/** The class at a place of the image, or nothing. */
export function showPointer(found, classes) {
  const line = $("pointer");
  if (!found) return line.replaceChildren();
  const known = classes.find(({ index }) => index === found.index);
  const name = known ? known.name : text.noClass;
  line.replaceChildren(...(known ? [swatch(known.color)] : []), text.pointer(name, found.x, found.y));
}
