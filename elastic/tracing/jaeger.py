"""Spans from Jaeger over HTTP: its API v3, and v1 where it has no other.

The trace id of a round follows from run and number, so a round that is named is fetched, not searched for. Parameters
are sent under the names of now and of Jaeger up to 2.18.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from elastic.errors import ConfigError
from elastic.trace_ids import hex_trace, round_trace_id
from elastic.tracing.otlp import Found, spans_in

MAX_ANSWER = 64 * 2**20
"""Bytes of an answer: a round of a hundred peers takes about 7 MB."""
SECONDS = 15.0
"""For an answer."""
LOOK_BACK = 7 * 86_400
"""Seconds before now in which rounds are searched for."""
MAX_SERVICES, OURS = 32, "peer-"
"""Services that are asked for rounds, and how the names of those of ours begin."""


class _NotThereError(Exception):
    """HTTP 404; the message is the answer."""


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """A login page is no answer."""


class Jaeger:
    """One Jaeger."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet.

        Args:
            url: of its UI, with a path before /api if it has one: "http://127.0.0.1:16686".

        Raises:
            ConfigError: it is none.
        """
        if not _is_address(url):
            raise ConfigError(f"--jaeger {url}: should be the address of Jaeger's page, as http://127.0.0.1:16686")
        self._url = url.rstrip("/")
        self._opener = build_opener(_NoRedirect)
        self._has_v3: bool | None = None

    def rounds(self, run: str, rounds: Iterable[int]) -> Found:
        """Spans of these rounds; of those that it does not know, none.

        Raises:
            ConfigError: it does not answer, or not as Jaeger does.
        """
        found = Found()
        for index in rounds:
            path = hex_trace(round_trace_id(run, index))
            try:
                found.take(spans_in(self._get(f"/api/v3/traces/{path}" if self._v3() else f"/api/traces/{path}")))
            except _NotThereError:
                continue
        return found

    def newest(self, run: str | None, depth: int) -> Found:
        """Spans of the newest rounds, so many at most, of this run or of any."""
        found = Found()
        for service in self._services():
            try:
                answer = spans_in(self._get(*self._search(service, run, depth)))
            except _NotThereError:
                continue
            found.take(answer)
            if answer.spans:  # all peers meet in the same traces
                break
        return found

    def _search(self, service: str, run: str | None, depth: int) -> tuple[str, dict[str, str]]:
        tags = {"swarm.run": run} if run else {}
        now = time.time()
        if not self._v3():
            query = {"service": service, "operation": "round", "limit": str(depth), "lookback": "custom",
                     "start": str(int((now - LOOK_BACK) * 1e6)), "end": str(int(now * 1e6))}  # fmt: skip
            return "/api/traces", query | ({"tags": json.dumps(tags)} if tags else {})
        earliest, latest = (datetime.fromtimestamp(each, UTC).isoformat() for each in (now - LOOK_BACK, now + 60))
        query = {
            "query.serviceName": service, "query.service_name": service,
            "query.operationName": "round", "query.operation_name": "round",
            "query.startTimeMin": earliest, "query.start_time_min": earliest,
            "query.startTimeMax": latest, "query.start_time_max": latest,
            "query.searchDepth": str(depth), "query.search_depth": str(depth), "query.num_traces": str(depth),
        }  # fmt: skip
        return "/api/v3/traces", query | ({"query.attributes": json.dumps(tags)} if tags else {})

    def _services(self) -> list[str]:
        path, key = ("/api/v3/services", "services") if self._v3() else ("/api/services", "data")
        named = self._get(path).get(key)
        ours = sorted(each for each in named or () if isinstance(each, str) and each.startswith(OURS))
        return ours[:MAX_SERVICES]

    def _v3(self) -> bool:
        if self._has_v3 is None:
            try:
                self._has_v3 = isinstance(self._get("/api/v3/services"), dict)
            except _NotThereError:
                self._has_v3 = False
        return self._has_v3

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        where = f"{self._url}{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        try:
            with self._opener.open(Request(where, headers={"Accept": "application/json"}), timeout=SECONDS) as answer:
                body = answer.read(MAX_ANSWER + 1)
        except HTTPError as error:
            if error.code == 404:
                raise _NotThereError(path) from error
            raise ConfigError(f"{self._url}: answers {error.code} to {path}: is it Jaeger's page?") from error
        except (URLError, OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ConfigError(f"{self._url}: Jaeger does not answer: {reason}") from error
        if len(body) > MAX_ANSWER:
            raise ConfigError(f"{self._url}: the answer to {path} is too large; ask for fewer --rounds")
        try:
            tree = json.loads(body)
        except (ValueError, RecursionError) as error:
            if path.startswith("/api/v3/") and self._has_v3 is None:
                raise _NotThereError(path) from error  # the page itself, which old ones give for every path
            raise ConfigError(f"{self._url}: the answer to {path} is no JSON: is it Jaeger's page?") from error
        if not isinstance(tree, dict):
            raise ConfigError(f"{self._url}: the answer to {path} is not Jaeger's")
        return tree


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port, no IPv6 address
        return False
