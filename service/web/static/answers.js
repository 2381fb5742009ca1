// The recipe's own prompts, answered by base, previous and current adapter.

import { get } from "./api.js";
import { byId, el, show } from "./dom.js";

export async function loadAnswers() {
  const found = await get("answers");
  show("answers", found.answers.length > 0);
  byId("answers-list").replaceChildren(...found.answers.map((one, at) => el("div", {},
    el("h3", {}, `Prompt ${at + 1}`),
    el("pre", { tabIndex: 0, "aria-label": `Prompt ${at + 1}` }, one.prompt),
    el("div", { class: "answers" },
      answer("base alone", one.base),
      answer(found.previous_version === null ? "previous: none" : `previous: v${found.previous_version}`, one.previous),
      answer(`current: v${found.current_version}`, one.current)))));
}

function answer(title, text) {
  return el("div", {}, el("h4", {}, title), el("pre", { tabIndex: 0, "aria-label": title }, text ?? "(not kept)"));
}
