// The way of the files. Each count opens the reasons of those that stayed behind.

import { get, toldOf } from "./api.js";
import { byId, el, openPanel, show, table } from "./dom.js";
import { openRow } from "./row.js";
import { count, plain, when } from "./words.js";

const MEANING = {
  arrived: "Files in the source table.",
  admitted: "Files that a run claimed, and that the checks of hygiene let pass.",
  sampled: "Files that gave training samples.",
  trained: "Files that a run was trained on.",
  judged: "Files whose run has a verdict.",
  live: "Files that the published adapters learned from.",
};
const NEXT = ["arrived", "admitted", "sampled", "trained", "judged", "live"];

let stages = [];

export function showPipeline(now) {
  stages = now.pipeline;
  show("no-files", stages[0].rows === 0);
  for (const stage of stages) {
    const button = byId("pipeline").querySelector(`[data-stage="${stage.stage}"]`);
    const number = button.querySelector("b");
    if (number.textContent !== count(stage.rows)) number.textContent = count(stage.rows);
    button.onclick = () => openStage(stage.stage);
  }
}

function openStage(name) {
  const stage = stages.find((one) => one.stage === name);
  const next = NEXT[NEXT.indexOf(name) + 1];
  const rows = stage.stayed.map((share) => [
    plain(share.reason),
    count(share.rows),
    share.disposition ? el("button", { type: "button", onclick: () => openRows(share) }, "Show rows") : "",
  ]);
  if (next) rows.push([`went on: ${next}`, count(stages.find((one) => one.stage === next).rows), ""]);
  openPanel(`${count(stage.rows)} ${name}`, el("p", {}, MEANING[name]),
    rows.length ? table(["what became of them", "files#", ""], rows, "What became of the files") : null,
    el("p", { class: "legend" }, "Files of runs are counted at each verdict, and waiting files at each poll."));
}

async function openRows(share, before = null) {
  const reason = share.disposition === "rejected" ? share.reason : null;
  try {
    const page = await get("rows", { disposition: share.disposition, reason, before, limit: 50 });
    openPanel(`Rows: ${plain(share.reason)}`,
      page.rows.length ? table(["row#", "reason", "run#", "attempts#", "settled at"], page.rows.map((row) => [
        el("button", { type: "button", onclick: () => openRow(row.file_id) }, String(row.file_id)),
        plain(row.reason ?? ""), String(row.run_id), String(row.attempts), when(row.settled_at)]), "Rows")
        : el("p", { class: "empty" }, "No row stands here now."),
      page.next_before === null ? null
        : el("button", { type: "button", onclick: () => openRows(share, page.next_before) }, "More"));
  } catch (error) {
    openPanel("Rows", el("p", {}, toldOf(error)));
  }
}
