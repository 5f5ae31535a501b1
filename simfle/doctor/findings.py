"""Findings of `simfle doctor`."""

from dataclasses import dataclass

OK, NOTE, BROKEN = "ok", "note", "broken"


@dataclass(frozen=True)
class Finding:
    """Finding. name: subject of the check; state: ok, note (works, with a warning) or broken; found: current state.

    advice: action, or "" if no action is needed.
    """

    name: str
    state: str
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(name, OK, found)


def note(name: str, found: str, advice: str) -> Finding:
    return Finding(name, NOTE, found, advice)


def broken(name: str, found: str, advice: str) -> Finding:
    return Finding(name, BROKEN, found, advice)
