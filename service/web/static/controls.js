// What changes the service. Each needs the token, which is asked for here and never part of an address.

import { askForToken, get, post, toldOf } from "./api.js";
import { byId, closePanel, el, openPanel, say, table } from "./dom.js";
import { loss, when } from "./words.js";

let shown = "";

export function showControls(now) {
  const key = `${now.can_act} ${now.held_since !== null} ${now.state === "training"}`;
  if (key === shown) return;
  shown = key;
  say("controls-note", now.can_act ? "Each asks for the token once." : "Set CODELUPE_TOKEN and restart the service to use these.");
  const act = (label, path, body) => el("button", { type: "button", disabled: !now.can_act, onclick: () => send(path, body) }, label);
  byId("controls").replaceChildren(...[
    act("Train now", "train", {}),
    now.held_since === null ? act("Pause", "pause", {}) : act("Resume", "resume", {}),
    now.state === "training" ? act("Stop and save", "pause", { stop_training: true }) : null,
    el("button", { type: "button", disabled: !now.can_act, onclick: chooseVersion }, "Roll back…"),
  ].filter(Boolean));
}

async function send(path, body) {
  if (!(await askForToken("This changes what the service does."))) return;
  try {
    const answer = await post(path, body);
    say("controls-said", `Done: ${answer.said}.`);
  } catch (error) {
    say("controls-said", `Not done: ${toldOf(error)}.`);
  }
}

async function chooseVersion() {
  try {
    const { adapters } = await get("adapters", { limit: 20 });
    const rows = adapters.map((one) => [String(one.version), when(one.published_at), loss(one.evaluation.losses?.candidate),
      one.is_current ? "current" : el("button", { type: "button", onclick: () => rollBack(one.version) }, `Make v${one.version} current`)]);
    openPanel("Roll back to an earlier version", rows.length ? table(["version#", "published at", "loss#", ""], rows, "Published versions")
      : el("p", { class: "empty" }, "Nothing is published yet."));
  } catch (error) {
    openPanel("Roll back", el("p", {}, toldOf(error)));
  }
}

async function rollBack(version) {
  closePanel();
  await send("rollback", { version });
}
