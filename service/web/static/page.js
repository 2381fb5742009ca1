// The page: asks the service for its state, and asks for the rest when that has changed. It only watches.

import { get } from "./api.js";
import { loadAnswers } from "./answers.js";
import { forgetCharts } from "./charts.js";
import { showControls } from "./controls.js";
import { byId, closePanel, say, show, visible } from "./dom.js";
import { forgetCurves, showNow } from "./now.js";
import { showPipeline } from "./pipeline.js";
import { loadQuality } from "./quality.js";
import { loadRuns } from "./runs.js";

const TOO_MANY = 429;
const RETRY_SECONDS = [2, 4, 8, 15];
let failures = 0;
let lostSince = null;
let scrolled;
const done = new Map();

/** Does a part again only if its key has changed. A part that fails is tried again next time. */
async function once(name, key, action) {
  if (done.get(name) === key) return;
  await action();
  done.set(name, key);
}

/** The log is asked for only while it can be seen. */
async function loadLog() {
  const log = byId("log");
  if (log.getBoundingClientRect().top > innerHeight && log.textContent !== "") return;
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const { lines } = await get("log", { lines: 100 });
  const text = visible(lines.join("\n"));
  if (log.textContent === text) return;
  log.textContent = text;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

async function refresh() {
  const now = await get("overview");
  say("sentence", now.sentence);
  byId("sentence").className = now.status;
  say("stream", now.stream);
  document.title = `${now.stream || "CodeLupe"}: ${now.state.replaceAll("_", " ")}`;
  showPipeline(now);
  showControls(now);
  const history = `${now.state} ${now.run?.run_id} ${now.current_version}`;
  const parts = await Promise.allSettled([once("runs", history, loadRuns)]);  // first, because it is small and seen first
  parts.push(...await Promise.allSettled([
    showNow(now),
    once("quality", `${now.run === null} ${now.current_version} ${now.state}`, loadQuality),
    once("answers", `${now.current_version}`, loadAnswers),
    loadLog(),
  ]));
  const failed = parts.find((part) => part.status === "rejected" && part.reason.status !== TOO_MANY);  // next time
  tellTrouble(failed ? `History cannot be read: ${failed.reason.message}` : null);
  return now.poll_seconds;
}

function tellTrouble(text) {
  show("connection", text !== null);
  if (text !== null) say("connection", text);
}

async function watch() {
  for (;;) {
    let seconds;
    try {
      seconds = await refresh();
      failures = 0;
      lostSince = null;
    } catch {
      lostSince ??= new Date();
      tellTrouble(`The service does not answer since ${lostSince.toLocaleTimeString()}. What you see is from before. This page tries again.`);
      seconds = RETRY_SECONDS[Math.min(failures, RETRY_SECONDS.length - 1)];
      failures += 1;
    }
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    if (document.hidden) await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

addEventListener("scroll", () => {
  clearTimeout(scrolled);
  scrolled = setTimeout(() => loadLog().catch(() => {}), 300);
}, { passive: true });
byId("panel-close").addEventListener("click", closePanel);
byId("token-cancel").addEventListener("click", () => byId("token-dialog").close());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  forgetCharts();
  forgetCurves();
  done.delete("quality");
});
watch();
