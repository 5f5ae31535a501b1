"""What the doctor says of one thing."""

from dataclasses import dataclass

OK, NOTE, BROKEN = "ok", "note", "broken"


@dataclass(frozen=True)
class Finding:
    """name: of the thing; state: ok, note (works, but mind it) or broken; found: what is there; advice: what to do,
    empty where nothing is to be done."""

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
