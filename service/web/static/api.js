// Asks /api/v1. The token is kept in this page's memory only, and is sent in a header.

import { byId, say } from "./dom.js";

/** A service that hangs is told like one that is gone. */
const PATIENCE_MILLISECONDS = 10_000;

let token = null;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function get(path, parameters = {}, { withToken = false } = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined));
  const asked = query.size ? `/api/v1/${path}?${query}` : `/api/v1/${path}`;
  const headers = withToken ? { Authorization: `Bearer ${token}` } : {};
  return answerOf(await fetch(asked, { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MILLISECONDS) }));
}

export async function post(path, body) {
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  return answerOf(await fetch(`/api/v1/${path}`, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answerOf(response) {
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) token = null;
  throw new Refused(response.status, answer.error ?? `status ${response.status}`);
}

/** Asks for the token, if this page does not have it yet. Returns whether there is one now. */
export async function askForToken(why) {
  if (token !== null) return true;
  const dialog = byId("token-dialog");
  const input = byId("token");
  say("token-why", why);
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue === "ok" && input.value !== "") token = input.value.trim();
  input.value = "";
  return token !== null;
}
