import React from "react";

type Props = { label: string; count?: number };

export function Badge({ label, count = 0 }: Props) {
  const text = count > 99 ? "99+" : String(count);
  return (
    <span className="badge" title={label}>
      {label}: <b>{text}</b>
    </span>
  );
}
