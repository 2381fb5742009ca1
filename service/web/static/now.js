// The run in progress.

import { get, pauseOf } from "./api.js";
import { chart, meanOf } from "./charts.js";
import { byId, el, facts, show, table } from "./dom.js";
import { drawLoss } from "./runs.js";
import { bytes, count, duration, loss } from "./words.js";

let drawnStep = null;

/** Draws the curves again at the next look. */
export function forgetCurves() {
  drawnStep = null;
}

export async function showNow(now) {
  const run = now.run;
  show("now", run !== null);
  show("experts", run !== null && !byId("experts").hidden);
  if (run === null) {
    forgetCurves();
    return;
  }
  byId("now-title").textContent = `Run ${run.run_id}`;
  byId("now-facts").replaceChildren(...facts([
    ["step", run.steps_total ? `${count(run.step)} of ${count(run.steps_total)}` : "preparing"],
    ["time left", run.seconds_left === null ? "" : duration(run.seconds_left)],
    ["training loss", loss(run.train_loss)], ["evaluation loss", loss(now.losses.eval)],
    ["patience left", run.patience === null ? "" : `${Math.max(0, run.patience - run.misses)} of ${run.patience} evaluations`],
    ["tokens per second", run.tokens_per_second === null ? "" : count(Math.round(run.tokens_per_second))],
    ["learning rate", run.learning_rate === null ? "" : run.learning_rate.toExponential(2)],
    ["gradient norm", run.grad_norm === null ? "" : run.grad_norm.toPrecision(3)],
    ...gpu(run),
  ]));
  await drawCurves(run);
}

/** Readings of the cards, where there are any. */
function gpu(run) {
  if (!run.gpu_memory_bytes && !run.gpu_card_total_bytes) return [["GPU", "none"]];
  return [
    ["GPU memory", run.gpu_card_total_bytes ? `${bytes(run.gpu_card_used_bytes)} of ${bytes(run.gpu_card_total_bytes)}` : bytes(run.gpu_memory_bytes)],
    ["GPU load", number(run.gpu_utilization, (value) => `${Math.round(value * 100)} %`)],
    ["GPU power", number(run.gpu_power_watts, (value) => `${Math.round(value)} W`)],
    ["GPU temperature", number(run.gpu_temperature_celsius, (value) => `${Math.round(value)} °C`)],
  ];
}

const number = (value, said) => (value === null || value === undefined ? "" : said(value));

async function drawCurves(run) {
  const key = `${run.run_id} ${run.step} ${run.misses}`;
  if (drawnStep === key) return;
  let found;
  do {
    found = await get(`runs/${run.run_id}/curves`, { points: 300 }).catch(() => null);
    if (!found) return;
    drawLoss("loss-chart", found);
    chart("speed-chart", "Tokens per second", "step", [
      { name: "tokens per second", colour: "train", points: meanOf(found.curves.tokens_per_second ?? []) }]);
    drawExperts(found.experts);
    if (!found.complete) await pauseOf(300);
  } while (!found.complete && !document.hidden);
  if (found.complete) drawnStep = key;
}

/** One row per layer, one cell per expert: the fuller, the more tokens it got. */
function drawExperts(intervals) {
  const last = intervals.at(-1);
  show("experts", Boolean(last));
  if (!last) return;
  const rows = last.layers.map((layer, at) => {
    const most = Math.max(...layer.shares);
    const heat = el("div", { class: "heat", "aria-hidden": "true" }, layer.shares.map((share) => {
      const cell = el("span", { title: `${(share * 100).toFixed(1)} %` });
      cell.style.opacity = String(Math.max(0.06, Math.min(1, (share * layer.shares.length) / last.top_k / 2)));
      return cell;
    }));
    return [String(at), heat, `${(most * 100).toFixed(1)} % on expert ${layer.shares.indexOf(most)}`, layer.entropy.toFixed(3),
      layer.dead.length ? layer.dead.join(", ") : "none"];
  });
  byId("experts-map").replaceChildren(
    el("p", { class: "summary" }, `Up to step ${last.step}. A full cell has twice the balanced share or more.`),
    table(["layer#", "experts", "largest share", "entropy#", "dead"], rows, "Use of the experts by layer"));
}
