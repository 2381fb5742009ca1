import { EventEmitter } from "node:events";
import defaultClock from "./clock.js";
const fs = require("fs");

/**
 * Calls `fn` once things have been quiet for `delay` milliseconds.
 */
export function debounce(fn, delay, clock = defaultClock) {
  let timer = null;
  let calls = 0;
  return (...args) => {
    calls += 1;
    if (timer !== null) clock.clear(timer);
    timer = clock.after(delay, () => {
      timer = null;
      fn(...args, calls);
    });
  };
}

// Counts words.
const countWords = (text) => {
  const counts = new Map();
  for (const word of text.split(/\s+/u)) {
    const before = counts.get(word) ?? 0;
    counts.set(word, before + 1);
  }
  return counts;
};

export class Watcher extends EventEmitter {
  #paths = new Set();

  add(path) {
    const known = this.#paths.has(path);
    if (!known) this.#paths.add(path);
    return { path, known };
  }
}

function readAll(paths) {
  const texts = [];
  for (let index = 0; index < paths.length; index++) {
    const path = paths[index];
    texts.push({ path, text: fs.readFileSync(path, "utf8") });
  }
  return texts;
}

module.exports = { countWords, readAll };
