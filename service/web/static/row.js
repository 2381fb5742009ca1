// One row of the source. Its text is shown only to who has the token.

import { askForToken, get, toldOf } from "./api.js";
import { el, facts, openPanel } from "./dom.js";
import { count, plain, when } from "./words.js";

export async function openRow(fileId) {
  await show(fileId, false);
}

async function show(fileId, withToken) {
  try {
    const found = await get(`rows/${fileId}`, {}, { withToken });
    const { row, text } = found;
    openPanel(`Row ${fileId}`,
      el("dl", { class: "facts" }, facts([
        ["stands", row ? plain(row.disposition) : "not claimed yet"], ["reason", row && plain(row.reason ?? "")],
        ["run", row && String(row.run_id)], ["attempts", row && String(row.attempts)], ["settled at", row && when(row.settled_at)],
        ["repository", text?.repository], ["path", text?.path], ["language", text?.language], ["score", text?.quality_score],
        ["size", text && `${count(text.content_bytes ?? 0)} bytes`],
      ])),
      text ? el("pre", { class: "row-text", tabIndex: 0, "aria-label": "Text of the row" }, text.content ?? "(no text, or too long to show)")
        : el("button", { type: "button", onclick: () => unlock(fileId) }, "Show the text"));
  } catch (error) {
    openPanel(`Row ${fileId}`, el("p", {}, toldOf(error)));
  }
}

async function unlock(fileId) {
  if (await askForToken("Texts of rows are shown only with the token.")) await show(fileId, true);
}
