"""One trace as a waterfall in a terminal, and many as a list.

    request       server-1/ingress       ████████████████████   46.20 ms  shop@v3 200 ok cold (first-ever) home server-2
    ├─ tls        server-1/ingress       █▎                      3.10 ms
    └─ hop        server-1/server         █████████████████▉    41.30 ms  home server-2 hop
       └─ handler server-2/isolate-host            █████████    21.20 ms  ok cpu 7.4 ms
             · at 30.00 ms log: cart 7 has 3 items

Pure: spans in, text out. Robust against what distributed traces do: a span whose parent did not arrive hangs under
the root, marked "?"; clocks that disagree only move bars. Much of the text is a tenant's (paths, logs), so characters
that a terminal would obey instead of print are replaced.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from tracing.summary import TraceSummary, in_order, root_of, summarize
from tracing.trace import Attr, Span, SpanEvent, SpanName

# Columns beyond these are cut: a name is at most a dozen characters, the rest is depth.
_LABEL_CHARS_MAX: Final = 32
_WHERE_CHARS_MAX: Final = 28
_TEXT_CHARS_MAX: Final = 120
# More lines of a guest's log than this belong in a log viewer.
_EVENTS_SHOWN_MAX: Final = 8
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_RIGHT_HALF: Final = "▐"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

SUMMARY_HEADER: Final = (
    "time          trace     method   host/path                            status  outcome            start    "
    "ran on        hop         total ms    cpu ms"
)


def draw(spans: Iterable[Span], bar_chars: int = 40) -> str:
    """The waterfall of one trace, without a newline at the end. `bar_chars`: the width of the time axis, at least 8.

    ValueError when there are no spans.
    """
    ordered = in_order(spans)
    summary = summarize(ordered)
    start_ns = min(span.start_ns for span in ordered)
    length_ns = max(max(span.end_ns for span in ordered) - start_ns, 1)
    rows = _tree(ordered)
    label_chars = min(max(len(label) for label, _, _ in rows), _LABEL_CHARS_MAX)
    where_chars = min(max(len(_where(span)) for _, _, span in rows), _WHERE_CHARS_MAX)
    lines = [_title(summary)]
    if not summary.complete:
        lines.append("(the request's own span has not arrived)")
    for label, indent, span in rows:
        bar = _bar(span.start_ns - start_ns, span.end_ns - start_ns, length_ns, max(bar_chars, 8))
        columns = [
            _cut(label, label_chars).ljust(label_chars),
            _cut(_where(span), where_chars).ljust(where_chars),
            bar,
            f"{_milliseconds(span.end_ns - span.start_ns):>11}",
            _remarks(span),
        ]
        lines.append("  ".join(columns).rstrip())
        lines += [f"{indent}   · {_event(event, start_ns)}" for event in span.events[:_EVENTS_SHOWN_MAX]]
        if len(span.events) > _EVENTS_SHOWN_MAX:
            lines.append(f"{indent}   · {len(span.events) - _EVENTS_SHOWN_MAX} more")
    return "\n".join(lines)


def summary_line(summary: TraceSummary, zone: tzinfo = UTC) -> str:
    """One trace as a row under `SUMMARY_HEADER`; the time of day in `zone`."""
    at = (_EPOCH + timedelta(microseconds=summary.start_ns // 1000)).astimezone(zone)
    target = f"{summary.host or ''}{summary.path or ''}" or "-"
    hop = "refused" if summary.refused is not None else "hop" if summary.hop else "-"
    columns = [
        f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}",
        summary.trace_id[:8],
        _cell(summary.method, 7),
        _cell(target, 35),
        _cell(None if summary.status is None else str(summary.status), 6),
        _cell(summary.outcome, 17),
        _cell(summary.start_type, 7),
        _cell(summary.ran_on or summary.server, 12),
        hop.ljust(8),
        f"{summary.duration_ms:>10.2f}",
        f"{'-' if summary.cpu_ms is None else format(summary.cpu_ms, '.2f'):>8}",
    ]
    return "  ".join(columns)


def _tree(ordered: list[Span]) -> list[tuple[str, str, Span]]:
    """(label with its branch, indent of what hangs below, span) from top to bottom; every span exactly once."""
    root = root_of(ordered)
    known = {span.span_id for span in ordered}
    children: dict[str | None, list[Span]] = {}
    orphans: list[Span] = []
    for span in ordered:
        if span is root:
            continue
        if span.parent_span_id in known:
            children.setdefault(span.parent_span_id, []).append(span)
        else:
            orphans.append(span)
    reached = _reached([root, *orphans] if root is not None else orphans, children)
    # Spans that are each other's parents are reached from nowhere: the first of each circle becomes an orphan.
    for span in ordered:
        if span.span_id not in reached:
            orphans.append(span)
            reached |= _reached([span], children, reached)
    rows: list[tuple[str, str, Span]] = []
    shown: set[str] = set()
    lost = {span.span_id for span in orphans}

    def below(span: Span) -> list[Span]:
        found = [child for child in children.get(span.span_id, []) if child.span_id not in lost]
        return in_order(found + orphans) if span is root else found

    stack: list[tuple[Span, str, str]] = []
    if root is not None:
        stack.append((root, "", ""))
    else:
        stack += [(orphan, "", "") for orphan in reversed(in_order(orphans))]
    while stack:
        span, branch, indent = stack.pop()
        if span.span_id in shown:
            continue
        shown.add(span.span_id)
        mark = "? " if span.span_id in lost else ""
        rows.append((f"{branch}{mark}{span.name}", indent, span))
        nested = below(span)
        for index, child in reversed(list(enumerate(nested))):
            last = index == len(nested) - 1
            stack.append((child, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  ")))
    return rows


def _reached(
    starts: Iterable[Span], children: dict[str | None, list[Span]], already: set[str] | None = None
) -> set[str]:
    reached = set(already or ())
    stack = list(starts)
    while stack:
        span = stack.pop()
        if span.span_id not in reached:
            reached.add(span.span_id)
            stack += children.get(span.span_id, [])
    return reached


def _bar(from_ns: int, to_ns: int, length_ns: int, chars: int) -> str:
    """A bar on an axis of `chars` cells; its end is exact to an eighth of a cell, its start to a half."""
    eighths = chars * 8
    start = min(from_ns * eighths // length_ns, eighths - 1)
    end = min(max(-(-to_ns * eighths // length_ns), start + 1), eighths)
    first, into = divmod(start, 8)
    cells = [" "] * first
    for cell in range(first, chars):
        filled = min(end - cell * 8, 8)
        if filled <= 0:
            cells.append(" ")
        elif cell == first and into >= 4 and filled == 8:
            cells.append(_RIGHT_HALF)
        else:
            cells.append(_EIGHTHS[filled - into if cell == first and filled < 8 else filled])
    return "".join(cells)


def _title(summary: TraceSummary) -> str:
    parts = [f"trace {summary.trace_id}"]
    target = f"{summary.host or ''}{summary.path or ''}"
    if target:
        parts.append(_cut(_plain(f"{summary.method or ''} {target}".strip()), _TEXT_CHARS_MAX))
    parts.append(f"{summary.duration_ms:.2f} ms")
    if summary.error:
        parts.append("failed")
    return "  ".join(parts)


def _where(span: Span) -> str:
    return _plain(f"{span.server}/{span.role}")


def _remarks(span: Span) -> str:
    attributes = span.attributes
    found: list[str] = []
    if Attr.WORKER in attributes:
        version = f"@{attributes[Attr.VERSION]}" if Attr.VERSION in attributes else ""
        found.append(f"{attributes[Attr.WORKER]}{version}")
    for name in (Attr.HTTP_STATUS, Attr.OUTCOME, Attr.START_TYPE):
        if name in attributes:
            found.append(str(attributes[name]))
    if Attr.COLD_CAUSE in attributes:
        found.append(f"({attributes[Attr.COLD_CAUSE]})")
    if Attr.HOME in attributes:
        found.append(f"home {attributes[Attr.HOME]}")
    if attributes.get(Attr.HOP) is True:
        found.append("hop")
    if Attr.REFUSED in attributes:
        found.append(f"refused {attributes[Attr.REFUSED]}")
    if Attr.CPU_MS in attributes:
        found.append(f"cpu {attributes[Attr.CPU_MS]} ms")
    if Attr.QUEUE_MS in attributes and span.name != SpanName.QUEUE:
        found.append(f"queued {attributes[Attr.QUEUE_MS]} ms")
    if span.error:
        found.append("failed")
    return _cut(_plain(" ".join(found)), _TEXT_CHARS_MAX)


def _event(event: SpanEvent, start_ns: int) -> str:
    text = next((event.attributes[n] for n in (Attr.LOG_TEXT, Attr.EXCEPTION_MESSAGE) if n in event.attributes), "")
    cut = " (truncated)" if event.attributes.get(Attr.TRUNCATED) is True else ""
    line = f"at {_milliseconds(event.at_ns - start_ns)} {event.name}: {text}"
    return _cut(_plain(line.rstrip(": \n")), _TEXT_CHARS_MAX) + cut


def _milliseconds(length_ns: int) -> str:
    return f"{length_ns / 1e6:.2f} ms"


def _cell(text: str | None, chars: int) -> str:
    return _cut(_plain(text or "-"), chars).ljust(chars)


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"


def _plain(text: str) -> str:
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "·" for letter in text)
