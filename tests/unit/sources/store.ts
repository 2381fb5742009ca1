import type { Clock } from "./clock";

/** One entry of the store. */
export interface Entry<T> {
  readonly key: string;
  value: T;
}

export type Listener<T> = (entry: Entry<T>) => void;

export enum Mode {
  Read = "read",
  Write = "write",
}

@sealed
export class Store<T> {
  private entries = new Map<string, Entry<T>>();

  constructor(private readonly clock: Clock) {}

  set(key: string, value: T): Entry<T> {
    const entry: Entry<T> = { key, value };
    this.entries.set(key, entry);
    return entry;
  }
}

export async function load(url: string, tries = 3): Promise<string> {
  let lastError: unknown = null;
  for (let attempt = 0; attempt < tries; attempt++) {
    try {
      const response = await fetch(url);
      return await response.text();
    } catch (error) {
      lastError = error;
    }
  }
  throw lastError;
}

function sealed(target: unknown): void {
  Object.freeze(target);
}
