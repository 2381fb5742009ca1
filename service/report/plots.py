"""Draws curves as SVG that stands inside an HTML page: no script, no metadata, nothing to load."""

from __future__ import annotations

import io
import re

from service.report.blocks import Plot

COLOURS = ("#9db7e0", "#1f6feb", "#1a7f37")
LINE_COLOURS = ("#9a6700", "#cf222e", "#8250df")
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def svg(plot: Plot) -> str:
    """Return a plot as an <svg> element."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.title}):
        figure = Figure(figsize=(7.5, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for (name, points), colour in zip(plot.curves.items(), COLOURS, strict=False):
            steps, values = [step for step, _ in points], [value for _, value in points]
            axes.plot(steps, values, color=colour, marker="." if len(points) < 30 else None, label=name)
        for (name, value), colour in zip(plot.lines.items(), LINE_COLOURS, strict=False):
            axes.axhline(value, color=colour, linestyle="--", linewidth=1, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(plot.unit)
        axes.grid(alpha=0.3)
        if len(plot.curves) + len(plot.lines) > 1:
            axes.legend()
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata=NO_METADATA)
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text, count=2)
