"""Server-sent events, read (WHATWG HTML, section 9.2.6). Pure: bytes in, events out.

An event counts when its blank line has come: what a broken connection cuts off is not half an event, and comes again.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Said:
    """One server-sent event; `event_id` is the last one that was named."""

    event_id: str
    kind: str
    data: str


@dataclass(slots=True)
class Reader:
    """The state of one stream. `retry_seconds` is what the server asked readers to wait before they come back."""

    last_event_id: str = ""
    retry_seconds: float | None = None
    _rest: bytes = b""
    _kind: str = ""
    _data: list[str] = field(default_factory=list)
    _id: str | None = None

    def feed(self, data: bytes) -> list[Said]:
        """Take what has come; return the events that are complete."""
        # A part that ends in CR is held until its LF could have come.
        text = self._rest + data
        held = text.endswith(b"\r")
        lines = (text[:-1] if held else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + (b"\r" if held else b"")
        found = []
        for line in lines:
            said = self._take(line.decode("utf-8", "replace"))
            if said is not None:
                found.append(said)
        return found

    def _take(self, line: str) -> Said | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id" if "\0" not in value:
                self._id = value
            case "event":
                self._kind = value
            case "data":
                self._data.append(value)
            case "retry" if value.isascii() and value.isdigit():
                self.retry_seconds = int(value) / 1000
            case _:
                pass  # a comment, or a field of a later standard
        return None

    def _dispatch(self) -> Said | None:
        if self._id is not None:
            self.last_event_id = self._id
        kind, data = self._kind or "message", self._data
        self._kind, self._data, self._id = "", [], None
        return Said(self.last_event_id, kind, "\n".join(data)) if data else None
