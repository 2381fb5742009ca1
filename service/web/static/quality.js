// What no tracker of single runs shows: whether the adapters become better over the runs, and what they forget.

import { get, pauseOf } from "./api.js";
import { chart } from "./charts.js";
import { show } from "./dom.js";

const GAINS = [["", "all held-out files", "train"], ["new.", "new files", "eval"], ["earlier.", "files of earlier runs", "current"],
  ["fim.", "fill in the middle", "extra"]];
const SUITE_COLOURS = ["train", "eval", "current", "extra"];

export async function loadQuality() {
  let found;
  do {
    found = await get("quality", { points: 300 });
    draw(found.points);
    if (!found.complete) await pauseOf(200);
  } while (!found.complete);
}

function draw(points) {
  show("quality", points.length > 0);
  if (!points.length) return;
  const line = (of) => points.map((point) => [point.run, of(point.values)]).filter(([, value]) => value !== undefined && !Number.isNaN(value));
  chart("held-out-chart", "Loss on held-out files (nats per token, lower is better)", "run", [
    { name: "candidate", colour: "train", points: line((v) => v.candidate), dots: points.length < 60 },
    { name: "current adapter", colour: "current", points: line((v) => v.current), dash: [2, 4] },
    { name: "base alone", colour: "base", points: line((v) => v.anchor), dash: [8, 5] },
  ]);
  chart("gain-chart", "Gain over the base (nats per token, higher is better)", "run", GAINS.map(([slice, name, colour]) => ({
    name, colour, points: line((v) => v[`${slice}anchor`] - v[`${slice}candidate`]), dots: points.length < 60 })));
  const suites = [...new Set(points.flatMap((point) => Object.keys(point.values)))].filter((name) => /^suite\..*\.candidate$/.test(name));
  chart("suite-chart", "pass@1 of the candidate", "run", suites.map((name, at) => ({
    name: name.slice(6, -10), colour: SUITE_COLOURS[at % SUITE_COLOURS.length], points: line((v) => v[name]), dots: true })));
}
