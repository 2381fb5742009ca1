// Builds elements from text. Nothing here ever parses HTML: texts of rows are hostile.

const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/gu;

/** Shows characters that would be invisible, colour a terminal or reorder a line. */
export function visible(text) {
  return String(text).replaceAll("\r\n", "\n").replace(CONTROLS, (found) => {
    const code = found.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** Makes an element. `given`: properties; `class` and names with a dash are attributes. */
export function el(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class" || key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    made.append(child instanceof Node ? child : visible(child));
  }
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

export function show(id, isShown) {
  byId(id).hidden = !isShown;
}

/** Sets the text of an element, only if it has changed: a screen reader would read it again. */
export function say(id, text) {
  const element = byId(id);
  const shown = visible(text);
  if (element.textContent !== shown) element.textContent = shown;
}

/** A table with a heading for each column. Columns whose name ends in "#" hold numbers. */
export function table(columns, rows, caption) {
  const isNumber = columns.map((name) => name.endsWith("#"));
  return el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": caption },
    el("table", {},
      el("thead", {}, el("tr", {}, columns.map((name, at) =>
        el("th", { scope: "col", class: isNumber[at] ? "number" : null }, name.replace(/#$/, ""))))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, at) =>
        el("td", { class: isNumber[at] ? "number" : null }, cell ?? "")))))));
}

/** A list of names with values. */
export function facts(pairs) {
  return pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

/** Opens the panel. */
export function openPanel(title, ...body) {
  byId("panel-title").textContent = visible(title);
  byId("panel-body").replaceChildren(...body.flat().filter((one) => one !== null && one !== undefined));
  const panel = byId("panel");
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
}

export function closePanel() {
  byId("panel").close();
}
