// The last runs as a strip, and one run in detail.

import { get, pauseOf, toldOf } from "./api.js";
import { bandOf, chart, level, meanOf } from "./charts.js";
import { byId, el, facts, openPanel, show, table } from "./dom.js";
import { openRow } from "./row.js";
import { count, loss, plain, when } from "./words.js";

const MARKS = { published: "✓", inconclusive: "?", refused: "✕", failed: "!", returned: "↺" };
const NAMES = { published: "promoted", inconclusive: "inconclusive", refused: "refused", failed: "failed", returned: "given back" };

let newest = [];
let older = [];
let next = null;

export async function loadRuns() {
  const page = await get("runs", { limit: 50 });
  newest = page.runs;
  if (!older.length) next = page.next_before;
  draw();
}

async function loadOlder() {
  const page = await get("runs", { limit: 50, before: next });
  older = [...older, ...page.runs];
  next = page.next_before;
  draw();
}

function draw() {
  const seen = new Set();
  const all = [...newest, ...older].filter((run) => !seen.has(run.run_id) && seen.add(run.run_id));
  const focused = document.activeElement?.dataset?.run;
  byId("runs").replaceChildren(...(all.length ? all.map(mark) : [el("li", { class: "empty" }, "No run yet.")]));
  if (focused) byId("runs").querySelector(`[data-run="${focused}"]`)?.focus();
  byId("runs-legend").replaceChildren(...legend(all));
  show("older-runs", next !== null);
  byId("older-runs").onclick = () => loadOlder().catch(() => {});
}

function mark(run) {
  const kind = MARKS[run.state] ? run.state : "live";
  const losses = run.candidate_loss === null ? "" : `, loss ${loss(run.current_loss)} to ${loss(run.candidate_loss)}`;
  const label = `Run ${run.run_id}: ${NAMES[run.state] ?? run.state}${losses}`;
  const button = el("button", { type: "button", class: kind, title: label, "aria-label": label, onclick: () => openRun(run.run_id) },
    MARKS[run.state] ?? "…");
  button.dataset.run = run.run_id;
  return el("li", {}, button);
}

function legend(all) {
  const counts = new Map();
  for (const run of all) counts.set(run.state, (counts.get(run.state) ?? 0) + 1);
  return [...counts].flatMap(([state, number]) => [
    el("span", { class: `mark ${MARKS[state] ? state : "live"}`, "aria-hidden": "true" }, MARKS[state] ?? "…"),
    ` ${number} ${NAMES[state] ?? state}`]).concat(all.length ? " (newest first)" : "");
}

export async function openRun(id) {
  try {
    const { run, files } = await get(`runs/${id}`);
    const report = run.report ?? {};
    openPanel(`Run ${id}: ${NAMES[run.state] ?? run.state}`, run.reason ? el("p", {}, run.reason) : null, factsOf(run, report), verdict(report.verdict), losses(report.evaluation),
      el("figure", { id: "run-chart" }), filesOf(id, files));
    await drawCurves(id);
  } catch (error) {
    openPanel(`Run ${id}`, el("p", {}, toldOf(error)));
  }
}

function factsOf(run, report) {
  const { steps } = report;
  return el("dl", { class: "facts" }, facts([
    ["phase", run.phase],
    ["from", run.trunk_run_id !== null ? `the open candidate of run ${run.trunk_run_id}`
      : run.parent_version !== null ? `version ${run.parent_version}` : "the base alone"],
    ["published in", run.published_in === null ? null : `version ${run.published_in}`],
    ["claimed at", when(run.created_at)], ["ended at", when(run.ended_at)], ["starts", String(run.launches)],
    ["steps", steps && `${steps.done} of ${steps.total}, best ${steps.best}${report.early_stopped ? ", stopped early" : ""}`],
    ["tokens", report.train?.tokens_published && count(report.train.tokens_published)], ["device", report.device],
    ["GPU energy", report.energy_joules && `${(report.energy_joules / 3.6e6).toFixed(3)} kWh`],
  ]));
}

function verdict(found) {
  if (!found) return null;
  const rules = (found.rules ?? []).map((rule) => [plain(rule.rule), el("span", { class: `tag ${rule.outcome}` }, rule.outcome), rule.text]);
  return el("div", {}, el("h3", {}, "What the gate found"),
    rules.length ? table(["rule", "outcome", "what was found"], rules, "Rules of the gate")
      : el("ul", {}, (found.reasons ?? []).map((reason) => el("li", {}, reason))));
}

function losses(evaluation) {
  if (!evaluation) return null;
  const named = [["base alone", evaluation.anchor], ["current adapter", evaluation.current], ["candidate", evaluation.candidate]];
  return el("div", {}, el("h3", {}, "Held-out files that judge"),
    table(["model", "loss#", "perplexity#", "top-1 accuracy#"],
      named.filter(([, score]) => score).map(([name, score]) => [name, loss(score.loss), loss(score.perplexity), loss(score.token_accuracy)]),
      "Losses on held-out files"));
}

function filesOf(id, files) {
  const rows = Object.entries(files).flatMap(([role, outcomes]) =>
    Object.entries(outcomes).map(([outcome, number]) => [plain(role), plain(outcome), count(number)]));
  if (!rows.length) return null;
  const list = el("div", {});
  const button = el("button", { type: "button", onclick: () => moreFiles(id, list, button) }, "List the files");
  return el("div", {}, el("h3", {}, "Files"), table(["role", "outcome", "files#"], rows, "Files by role and outcome"), list, button);
}

async function moreFiles(id, list, button) {
  let page;
  try {
    page = await get(`runs/${id}/files`, { after: button.dataset.after ?? null, limit: 50 });
  } catch (error) {
    list.append(el("p", {}, toldOf(error)));
    return;
  }
  list.append(table(["row#", "role", "outcome", "tokens#", "stands now"], page.files.map((file) => [
    el("button", { type: "button", onclick: () => openRow(file.file_id) }, String(file.file_id)), plain(file.role), plain(file.outcome ?? ""),
    file.tokens === null ? "" : count(file.tokens), [file.disposition, file.reason].filter(Boolean).map(plain).join(": ")]), "Files of the run"));
  button.hidden = page.next_after === null;
  button.dataset.after = page.next_after;
  button.textContent = "More files";
}

async function drawCurves(id) {
  const figure = byId("run-chart");
  while (figure.isConnected && byId("panel").open) {
    const found = await get(`runs/${id}/curves`, { points: 300 }).catch(() => null);
    if (found && figure.isConnected) drawLoss("run-chart", found);
    if (found?.complete) return;
    await pauseOf(500);
  }
}

/** Training and evaluation loss of one run, against the base and the adapter it started from. */
export function drawLoss(id, { curves, lines }) {
  const train = curves.train_loss ?? [];
  const evaluation = curves.eval_loss ?? [];
  chart(id, "Loss (nats per token)", "step", [
    { name: "training", colour: "train", points: meanOf(train), band: bandOf(train) },
    { name: "evaluation", colour: "eval", points: meanOf(evaluation), dots: true },
    { name: "current adapter", colour: "current", points: level(lines.current, train, evaluation), dash: [2, 4] },
    { name: "base alone", colour: "base", points: level(lines.anchor, train, evaluation), dash: [8, 5] },
  ]);
}
