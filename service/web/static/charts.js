// Line charts by uPlot. Each has a text that says the same to who does not see it.

import { el, visible } from "./dom.js";

const drawn = new Map();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function axis(given) {
  const font = "12px system-ui";
  return { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), size: 4 },
    font, labelFont: font, values: (_, splits) => splits.map((value) => (value === null ? "" : short(value))), ...given };
}

/** Steps and runs have whole numbers. */
const WHOLE = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].flatMap((ten) => [ten, 2 * ten, 5 * ten]);

export function short(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size < 1e-3) return value.toExponential(1);
  return `${+value.toPrecision(4)}`;
}

/**
 * Draws a chart, or new data into the one that is there.
 *
 * @param id the figure's id
 * @param title what is shown, with its unit
 * @param xLabel the name of the x axis
 * @param lines each {name, colour, points: [[x, y], …], band: [[x, low, high], …]?, dash?, dots?}
 */
export function chart(id, title, xLabel, lines) {
  const kept = lines.filter((line) => line.points.length);
  const figure = document.getElementById(id);
  figure.hidden = kept.length === 0;
  if (figure.hidden) return;
  const series = [{ label: xLabel }];
  const tables = [];
  const bands = [];
  for (const line of kept) {
    const stroke = colour(line.colour);
    if (line.band) {
      const at = series.length;
      const edge = { stroke: "transparent", width: 0, points: { show: false } };
      series.push({ ...edge, label: `${line.name}, highest` }, { ...edge, label: `${line.name}, lowest` });
      tables.push([line.band.map((p) => p[0]), line.band.map((p) => p[2]), line.band.map((p) => p[1])]);
      bands.push({ series: [at, at + 1], fill: `color-mix(in srgb, ${stroke} 22%, transparent)` });
    }
    series.push({ label: line.name, stroke, width: 2, dash: line.dash, spanGaps: true,
      points: { show: line.dots === true || line.points.length === 1, size: 6, fill: stroke } });
    tables.push([line.points.map((p) => p[0]), line.points.map((p) => p[1])]);
  }
  const data = window.uPlot.join(tables);
  const shape = JSON.stringify([title, xLabel, series.map((one) => [one.label, String(one.stroke), one.points?.show])]);
  const before = drawn.get(id);
  if (before?.shape === shape && before.figure === figure) {
    before.plot.setData(data);
    readOut(figure, title, xLabel, kept);
    return;
  }
  before?.watch.disconnect();
  before?.plot.destroy();
  const holder = el("div", { "aria-hidden": "true" });
  figure.replaceChildren(el("figcaption", {}, title), holder, el("p", { class: "read-out" }));
  readOut(figure, title, xLabel, kept);
  const size = () => ({ width: Math.max(260, figure.clientWidth), height: 210 });
  const plot = new window.uPlot({
    ...size(), series, bands, scales: { x: { time: false } }, legend: { show: false }, cursor: { drag: { x: true, y: false } },
    axes: [axis({ label: xLabel, labelSize: 16, size: 26, incrs: WHOLE }), axis({ size: 52 })],
    hooks: { setCursor: [(one) => readOut(figure, title, xLabel, kept, one.cursor.idx === null ? undefined : one.data[0][one.cursor.idx])] },
  }, data, holder);
  const watch = new ResizeObserver(() => plot.setSize(size()));
  watch.observe(figure);
  drawn.set(id, { plot, shape, watch, figure });
}

/** The legend, with the value of each line: the last one, or the one under the pointer. */
function readOut(figure, title, xLabel, lines, at) {
  const values = lines.map((line) => (at === undefined ? line.points.at(-1) : line.points.findLast(([x]) => x <= at)) ?? line.points[0]);
  const place = at === undefined ? "Last" : `${xLabel} ${at}`;
  figure.querySelector(".read-out").replaceChildren(`${place}: `, ...lines.map((line, number) => el("span", { class: "entry" },
    el("span", { class: `key ${line.colour}`, "aria-hidden": "true" }), `${line.name} ${short(values[number][1])}`)));
  if (at !== undefined) return;
  figure.setAttribute("role", "img");
  figure.setAttribute("aria-label", visible(`${title}. Last: ${lines.map((line, number) => `${line.name} ${short(values[number][1])}`).join(", ")}.`));
}

/** Forgets the charts, so that they are drawn anew: the colours have changed. */
export function forgetCharts() {
  for (const { plot, watch } of drawn.values()) {
    watch.disconnect();
    plot.destroy();
  }
  drawn.clear();
}

export const meanOf = (points) => points.map(([step, mean]) => [step, mean]);
export const bandOf = (points) => points.map(([step, , least, most]) => [step, least, most]);
/** A horizontal line over the range of others. */
export function level(value, ...others) {
  const steps = others.flat().map(([step]) => step);
  return steps.length && Number.isFinite(value) ? [[Math.min(...steps), value], [Math.max(...steps), value]] : [];
}
