"""A page's intervals as one inline SVG: 360 units wide, the width of a phone, so that letters stay legible on it."""

from collections.abc import Iterable
from html import escape
from textwrap import wrap

from margins.verdicts import Part

# Colours that hold on the light and the dark theme; the marks differ too, so that nothing is said by colour alone.
_COLOURS = {"supported": "#1a9b5c", "contradicted": "#d6455d", "undecided": "#c58a1c"}
_WIDTH, _EDGE, _LINE, _BAR = 360, 12, 15, 18


def forest(claims: Iterable[tuple[str, Iterable[Part]]]) -> str:
    """The intervals of (heading, parts) pairs as SVG text, one panel a unit; "" where no part has an interval."""
    panels: dict[str, list[tuple[str, Part]]] = {}
    for heading, parts in claims:
        for part in parts:
            if part.low is not None:
                panels.setdefault(part.unit, []).append((heading, part))
    if not panels:
        return ""
    body, y = [], 0
    for unit, rows in panels.items():
        lines, y = _panel(unit, rows, y)
        body += lines
    count = sum(map(len, panels.values()))
    title = f"95 % intervals of {count} differences with what is claimed of them; the tables below hold the numbers"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {_WIDTH} {y}" fill="currentColor"'
    style = 'font-size="12" font-family="sans-serif" style="width:100%;max-width:36rem;height:auto"'
    return "\n".join([f'{head} {style} aria-label="{title}">', f"<title>{title}</title>", *body, "</svg>"])


def _panel(unit: str, rows: list[tuple[str, Part]], y: int) -> tuple[list[str], int]:
    ends = [end for _, part in rows for end in (part.low, part.high, part.delta, 0.0)]
    ends += [-part.delta for _, part in rows if part.relation == "within"]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    low, high = low - 0.04 * span, high + 0.04 * span

    def x(value: float) -> float:
        return round(_EDGE + (_WIDTH - 2 * _EDGE) * (value - low) / (high - low), 1)

    last, out = None, []
    for heading, part in rows:
        if heading != last:
            y += 6
            for line in wrap(heading, 50):
                y += _LINE
                out.append(f'<text x="{_EDGE}" y="{y}" font-weight="bold">{escape(line)}</text>')
            last = heading
        for line in wrap(part.label, 54):
            y += _LINE
            out.append(f'<text x="{_EDGE}" y="{y}">{escape(line)}</text>')
        left = {">": part.delta, "<": low, "within": -part.delta}[part.relation]
        right = high if part.relation == ">" else part.delta
        y += 4
        out.append(f'<rect x="{x(left)}" y="{y}" width="{x(right) - x(left):.1f}" height="{_BAR - 4}" opacity="0.15"/>')
        out.append(f'<path d="M{x(0)} {y}v{_BAR - 4}" stroke="currentColor" stroke-dasharray="2 2"/>')
        out += _mark(x(part.low), x(part.estimate), x(part.high), y + (_BAR - 4) // 2, part.outcome)
        y += _BAR
    out.append(f'<path d="M{_EDGE} {y}H{_WIDTH - _EDGE}" stroke="currentColor"/>')
    for value, anchor in ((low, "start"), (high, "end")):
        out.append(f'<text x="{x(value)}" y="{y + _LINE}" text-anchor="{anchor}">{value:.3g}</text>')
    out.append(f'<text x="{_WIDTH // 2}" y="{y + _LINE}" text-anchor="middle">{escape(unit)}</text>')
    return out, y + 2 * _LINE


def _mark(low: float, mean: float, high: float, y: int, outcome: str) -> list[str]:
    colour = _COLOURS[outcome]
    line = f'<path d="M{low} {y}H{high}M{low} {y - 4}v8M{high} {y - 4}v8" stroke="{colour}" stroke-width="2"/>'
    if outcome == "contradicted":
        return [line, f'<rect x="{mean - 4:.1f}" y="{y - 4}" width="8" height="8" fill="{colour}"/>']
    fill = colour if outcome == "supported" else "none"
    return [line, f'<circle cx="{mean}" cy="{y}" r="4" fill="{fill}" stroke="{colour}" stroke-width="2"/>']
