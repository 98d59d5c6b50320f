"""Spans out of JSON: OTLP's, as files and Jaeger's API v3 have it, and that of Jaeger's API v1.

Nothing that is in there raises: what is no span is skipped and counted.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from elastic.names import printable
from elastic.tracing.model import MAX_ATTRIBUTES, MAX_EVENTS, MAX_NAME, MAX_SECONDS, MAX_TEXT, Event, Span, Value

_HEX = re.compile(r"[0-9a-fA-F]{1,32}")
_MAX_NS = 2**63
_ERROR = {2, "STATUS_CODE_ERROR"}
_BROKEN = (TypeError, ValueError, LookupError, AttributeError, RecursionError, OverflowError)
"""What garbage in place of a tree raises."""


@dataclass(slots=True)
class Found:
    """What reading brought."""

    spans: list[Span] = field(default_factory=list)
    skipped: int = 0
    """Lines and spans that are none."""

    def take(self, other: Found) -> None:
        """Add what was found elsewhere."""
        self.spans += other.spans
        self.skipped += other.skipped


def spans_in(tree: Any) -> Found:
    """All spans of a parsed JSON value, whichever of the forms it has."""
    found = Found()
    if not isinstance(tree, dict):
        found.skipped += 1
    elif isinstance(tree.get("result"), dict):
        return spans_in(tree["result"])
    elif isinstance(tree.get("data"), list):
        for each in tree["data"]:
            found.take(_of_v1(each))
    elif isinstance(tree.get("resourceSpans"), list):
        for each in tree["resourceSpans"]:
            found.take(_of_resource(each))
    else:
        found.skipped += 1
    return found


def _of_resource(group: Any) -> Found:
    found = Found()
    try:
        about = _attributes(group.get("resource", {}).get("attributes", ()))
        spans = [span for scope in group.get("scopeSpans", ()) for span in scope.get("spans", ())]
    except _BROKEN:
        return Found(skipped=1)
    for span in spans:
        try:
            found.spans.append(_of_otlp(span, about))
        except _BROKEN:
            found.skipped += 1
    return found


def _of_otlp(span: Any, about: dict[str, Value]) -> Span:
    status = span.get("status") or {}
    failed = status.get("code") in _ERROR
    return _span(
        ids=(span["traceId"], span["spanId"], span.get("parentSpanId") or ""),
        name=span["name"],
        times=(int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])),
        about=about,
        attributes=_attributes(span.get("attributes", ())),
        events=[
            Event(
                printable(str(each.get("name", "")), MAX_NAME),
                int(each.get("timeUnixNano", 0)),
                _attributes(each.get("attributes", ())),
            )
            for each in span.get("events", ())[:MAX_EVENTS]
        ],
        error=printable(str(status.get("message", "")), MAX_TEXT) if failed else None,
    )


def _of_v1(trace: Any) -> Found:
    found = Found()
    try:
        processes, spans = trace["processes"], list(trace["spans"])
    except _BROKEN:
        return Found(skipped=1)
    for span in spans:
        try:
            process = processes[span["processID"]]
            about = _tags(process.get("tags") or ()) | {
                "service.name": printable(str(process["serviceName"]), MAX_TEXT)
            }
            found.spans.append(_of_jaeger(span, about))
        except _BROKEN:
            found.skipped += 1
    return found


def _of_jaeger(span: Any, about: dict[str, Value]) -> Span:
    tags, begin = _tags(span.get("tags") or ()), int(span["startTime"]) * 1000
    parents = [each["spanID"] for each in span.get("references") or () if each.get("refType") == "CHILD_OF"]
    failed = tags.pop("error", False) in (True, "true") or tags.get("otel.status_code") == "ERROR"
    events = []
    for log in (span.get("logs") or ())[:MAX_EVENTS]:
        fields = _tags(log.get("fields") or ())
        events.append(Event(str(fields.pop("event", ""))[:MAX_NAME], int(log["timestamp"]) * 1000, fields))
    return _span(
        ids=(span["traceID"], span["spanID"], parents[0] if parents else ""),
        name=span["operationName"],
        times=(begin, begin + int(span["duration"]) * 1000),
        about=about,
        attributes=tags,
        events=events,
        error=str(tags.get("otel.status_description", "")) if failed else None,
    )


def _span(  # noqa: PLR0913 - what a span is
    *,
    ids: tuple[Any, Any, Any],
    name: Any,
    times: tuple[int, int],
    about: dict[str, Value],
    attributes: dict[str, Value],
    events: list[Event],
    error: str | None,
) -> Span:
    start, end = times
    if not (0 <= start <= end < _MAX_NS and end - start <= MAX_SECONDS * 1e9):
        raise ValueError("times that cannot be")
    if any(not 0 <= each.at < _MAX_NS for each in events):
        raise ValueError("times that cannot be")
    stamped = about.get("swarm.peer.id") or about.get("service.instance.id") or attributes.get("swarm.peer") or ""
    return Span(
        trace=_hex(ids[0], 32), id=_hex(ids[1], 16), parent=_hex(ids[2], 16) if ids[2] else "",
        name=printable(str(name), MAX_NAME), start=start, end=end, peer=str(stamped),
        service=str(about.get("service.name", "")),
        run=str(about.get("service.namespace") or attributes.get("swarm.run") or ""),
        attributes=attributes, events=tuple(events), error=error,
    )  # fmt: skip


def _hex(value: Any, digits: int) -> str:
    """An id in hex, with the zeros that some leave out; protobuf's own JSON has base64 there."""
    text = str(value)
    if len(text) == (digits // 2 + 2) // 3 * 4 and text.endswith("="):
        try:
            text = b64decode(text, validate=True).hex()
        except binascii.Error as error:
            raise ValueError("no id") from error
    if not _HEX.fullmatch(text) or len(text) > digits or not int(text, 16):
        raise ValueError("no id")
    return text.lower().zfill(digits)


def _attributes(pairs: Iterable[Any]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for pair in _some(pairs):
        value = pair.get("value") or {}
        if "intValue" in value:
            found[printable(str(pair["key"]), MAX_NAME)] = int(value["intValue"])
        elif "doubleValue" in value:
            found[printable(str(pair["key"]), MAX_NAME)] = float(value["doubleValue"])
        elif "boolValue" in value:
            found[printable(str(pair["key"]), MAX_NAME)] = bool(value["boolValue"])
        elif "stringValue" in value:
            found[printable(str(pair["key"]), MAX_NAME)] = printable(str(value["stringValue"]), MAX_TEXT)
    return found


def _tags(tags: Iterable[Any]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for tag in _some(tags):
        kind, value = tag.get("type"), tag.get("value")
        key = printable(str(tag["key"]), MAX_NAME)
        if kind == "int64":
            found[key] = int(value)
        elif kind == "float64":
            found[key] = float(value)
        elif kind == "bool":
            found[key] = value in (True, "true")
        else:
            found[key] = printable(str(value), MAX_TEXT)
    return found


def _some(items: Iterable[Any]) -> Iterator[Any]:
    for number, item in enumerate(items):
        if number >= MAX_ATTRIBUTES:
            return
        yield item
