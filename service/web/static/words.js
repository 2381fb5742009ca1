// Numbers and times as people read them.

export const count = (number) => Number(number).toLocaleString("en");
export const loss = (value) => (Number.isFinite(value) ? value.toFixed(4) : String(value ?? ""));

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

export function when(moment) {
  if (!moment) return "";
  return new Date(typeof moment === "number" ? moment * 1000 : moment).toLocaleString();
}

export function bytes(number) {
  return number >= 1e9 ? `${(number / 1e9).toFixed(1)} GB` : `${(number / 1e6).toFixed(0)} MB`;
}

export const plain = (name) => String(name).replaceAll("_", " ");
