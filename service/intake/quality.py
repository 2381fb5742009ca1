"""A heuristic quality score from 0 to 100, for texts whose source gives none.

100 minus
  30 × the share of repeated lines (without blank lines), beyond the first 30 %
  30 × the share of lines over 120 characters
  20   if under 40 % of the characters (without whitespace) are letters and digits
  10   if over 60 % of the lines are comments, or if over 100 lines have none
  10   if there are fewer than 5 lines
  60   if a merge conflict was left in it
  10 × the share of lines with TODO, FIXME, XXX or HACK, times 10, at most 10
Ordinary code scores 85 or more. The default threshold is 70. `codelupe drop --score N` overrides the score.
"""

from __future__ import annotations

import re
import string

from service.source_files import has_conflict

COMMENT = ("#", "//", "/*", "*", "--", ";", "%", "<!--", '"""', "'''")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
BLANKS = b" \t\r\n\v\f"
SIGNS = bytes(range(128)).translate(None, (string.ascii_letters + string.digits).encode())
"""ASCII characters that are neither letter nor digit. All other characters count as letters."""
FREE_REPETITION = 0.3
LONG_LINE_CHARS = 120
LEAST_LINES, MANY_LINES = 5, 100


def quality_score(text: str) -> float:
    """Return the score of a text, with one decimal."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if not lines:
        return 0.0
    repeated = 1 - len(set(lines)) / len(lines)
    comments = sum(line.startswith(COMMENT) for line in lines) / len(lines)
    written = text.encode("utf-8", "surrogatepass").translate(None, BLANKS)
    letters = len(written.translate(None, SIGNS)) / max(1, len(written))
    score = 100.0
    score -= 30 * max(0.0, repeated - FREE_REPETITION) / (1 - FREE_REPETITION)
    if max(map(len, lines)) > LONG_LINE_CHARS:
        score -= 30 * sum(len(line) > LONG_LINE_CHARS for line in lines) / len(lines)
    score -= 20 * (letters < 0.4)
    score -= 10 * (comments > 0.6 or (comments == 0 and len(lines) > MANY_LINES))
    score -= 10 * (len(lines) < LEAST_LINES)
    score -= 60 * has_conflict(text)
    if any(word in text for word in ("TODO", "FIXME", "XXX", "HACK")):  # ten times faster than the pattern
        score -= min(10.0, 100 * len(UNFINISHED.findall(text)) / len(lines))
    return round(max(0.0, score), 1)
