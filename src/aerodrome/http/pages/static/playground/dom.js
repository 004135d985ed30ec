// Making elements: text is always text, never markup; no inline style or handler, so that the page's strict policy holds.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  copy: "M8 8h10v12H8zM6 16H4V4h10v2",
  check: "M5 12.5l4.5 4.5L19 7.5",
  cross: "M6 6l12 12M18 6L6 18",
  send: "M12 20V5M5.5 11.5L12 5l6.5 6.5",
  stop: "M7 7h10v10H7z",
  plus: "M12 5v14M5 12h14",
  down: "M12 5v14M5.5 12.5L12 19l6.5-6.5",
  tool: "M14.5 6.5a4 4 0 0 0-5 5L4 17l3 3 5.500-5.500a4 4 0 0 0 5-5L15 12l-3-3z",
  shield: "M12 3l7 3v5c0 4.500-3 8-7 10-4-2-7-5.500-7-10V6z",
  question: "M9 9.200A3 3 0 0 1 12 7c1.700 0 3 1.100 3 2.600 0 2-3 2.300-3 4.400M12 17.500v.1",
  warning: "M12 4l9 16H3zM12 10v4M12 17v.1",
  list: "M4 7h16M4 12h16M4 17h16",
  more: "M6 12h.1M12 12h.1M18 12h.1",
  thought: "M9 18h6M10 21h4M12 3a6 6 0 0 0-3.500 10.900c.6.500.900 1.200.900 2.100h5.200c0-.9.300-1.600.900-2.100A6 6 0 0 0 12 3z",
};

/** Return an element. `given`: attributes, `on` for listeners, `text` for its text; children may be null. */
export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [kind, listener] of Object.entries(value)) made.addEventListener(kind, listener);
    else if (name === "text") made.textContent = value;
    else if (value === true) made.setAttribute(name, "");
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return an icon; it says nothing to who hears the page, so its button needs a name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Return a button that copies what `text()` returns, and says that it did. */
export function copyButton(text, label = "Copy") {
  const words = el("span", { text: label });
  const button = el("button", { type: "button", class: "ghost", "aria-label": label }, icon("copy"), words);
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      said = "Select it and copy";
    }
    words.textContent = said;
    button.replaceChild(icon(said === "Copied" ? "check" : "cross"), button.firstChild);
    setTimeout(() => {
      words.textContent = label;
      button.replaceChild(icon("copy"), button.firstChild);
    }, 1600);
  });
  return button;
}

/** Where a focus would bring up a keyboard that covers half of the page, the reader asks for it. */
const COARSE = window.matchMedia("(pointer: coarse)");

/** Put the focus where one writes. */
export function focusPrompt() {
  if (!COARSE.matches) document.getElementById("prompt")?.focus({ preventScroll: true });
}

export function seconds(value) {
  if (value < 1) return `${Math.max(1, Math.round(value * 1000))} ms`;
  return value < 100 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

export function count(value) {
  return value.toLocaleString("en");
}

/** Return how long ago a time (seconds since the epoch) was, in few words. */
export function ago(time) {
  const passed = Date.now() / 1000 - time;
  if (passed < 60) return "now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h`;
  return new Date(time * 1000).toLocaleDateString("en", { month: "short", day: "numeric" });
}
