// Asks /api/v1. The token is kept in this page's memory only, and is sent in a header.

import { byId, say } from "./dom.js";

/** A service that hangs is told like one that is gone. */
const PATIENCE_MILLISECONDS = 10_000;
const LONGEST_TOKEN = 4096;

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
  const signal = AbortSignal.timeout(3 * PATIENCE_MILLISECONDS);
  return answerOf(await fetch(`/api/v1/${path}`, { method: "POST", headers, body: JSON.stringify(body), signal }));
}

export const pauseOf = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** What to tell about an error: the service's own words, or that it is away. */
export function toldOf(error) {
  if (error instanceof Refused) return error.message;
  console.warn(error);
  return "the service does not answer";
}

async function answerOf(response) {
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if ([401, 431].includes(response.status)) token = null;
  throw new Refused(response.status, answer.error ?? `status ${response.status}`);
}

/** A header holds bytes: those of the text in UTF-8. */
function asHeader(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
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
  const given = input.value.trim();
  if (dialog.returnValue === "ok" && given !== "" && given.length <= LONGEST_TOKEN) token = asHeader(given);
  input.value = "";
  return token !== null;
}
