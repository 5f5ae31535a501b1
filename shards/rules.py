"""Resolve the label, group, split, key and order of each entry. Pure functions."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath

from shards.entry import Entry, Rejected
from shards.errors import UserError

TRAIN, VAL, TEST = "train", "val", "test"
SPLIT_NAMES = {"training": TRAIN, "valid": VAL, "validation": VAL, "dev": VAL, "testing": TEST}
SPLIT_NAMES |= {
    f"{name}-set": split for name, split in (SPLIT_NAMES | {each: each for each in (TRAIN, VAL, TEST)}).items()
}
# A ustar header holds a name of 100 bytes: a key and an extension of up to 9 characters (".json").
KEY_LENGTH = 90
# Spaces and invisible characters around a label, as web pages and Excel leave them.
AROUND = re.compile(r"^[\s\u200b\u200c\u200d\u2060\ufeff]+|[\s\u200b\u200c\u200d\u2060\ufeff]+$")
FEW = 4096  # cached label and split names: a corpus repeats a few of them millions of times


@dataclass(frozen=True)
class EntryRules:
    """Rules that resolve labels, groups and splits.

    labels: accepted names in order (empty = all); labeled: an entry needs a label;
    group_pattern: regular expression with one group, searched in the source; val_fraction, test_fraction: fractions
    of the groups of split train, in [0, 1).
    """

    labels: tuple[str, ...] = ()
    labeled: bool = False
    group_pattern: str = ""
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    split_seed: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for an invalid pattern, fraction or list of labels."""
        check_pattern(self.group_pattern)
        for name, value in (("--val-fraction", self.val_fraction), ("--test-fraction", self.test_fraction)):
            if not 0 <= value < 1:
                raise UserError(f"{name}={value:g}: must be in [0, 1). Fix: pass 0.2 for a fifth of the groups.")
        if self.val_fraction + self.test_fraction >= 1:
            raise UserError("--val-fraction, --test-fraction: no group is left to train on. Fix: keep the sum below 1.")
        if len({normalize_label(name) for name in self.labels}) != len(self.labels):
            raise UserError(f"--labels={','.join(self.labels)}: a label is listed twice. Fix: list each label once.")


def check_pattern(pattern: str) -> None:
    """Raise UserError unless `pattern` is empty or a regular expression with exactly one group."""
    try:
        groups = re.compile(pattern).groups if pattern else 1
    except re.error as error:
        raise UserError(
            f"--group-pattern={pattern!r}: not a regular expression ({error}). Fix: correct the pattern."
        ) from None
    if groups != 1:
        raise UserError(
            f"--group-pattern={pattern!r}: has {groups} groups, needs one. Fix: put one pair of parentheses around the "
            r"part that identifies the person, as in '^(.*)_\d+\.jpg$'."
        )


def resolve_entry(entry: Entry, rules: EntryRules) -> Entry | Rejected:
    """Return the entry with its final label, group and split, or the reason why it is rejected."""
    label = normalize_label(entry.label)
    if label is None and rules.labeled:
        return Rejected(entry.source, "unlabeled")
    if label is not None and rules.labels and label not in rules.labels:
        return Rejected(entry.source, "unknown_label", label)
    group = entry.group
    if rules.group_pattern:
        match = re.search(normalize_unicode(rules.group_pattern), normalize_unicode(entry.source))
        group = (match.group(1) if match else None) or None
    group = normalize_unicode(group) if group else group
    broken = [text for text in (entry.key, group or "") if not is_text(text)]
    if broken:
        return Rejected(entry.source, "bad_row", f"{broken[0]!a} contains a lone UTF-16 surrogate")
    split = normalize_split(entry.split)
    if not split:
        return Rejected(entry.source, "bad_row", f"split {entry.split!r} has no ASCII letter or digit; rename it")
    if split == TRAIN:
        split = assign_split(entry.key if group is None else group, rules)
    return replace(entry, label=label, group=group, split=split)


def is_text(text: str) -> bool:
    """Return whether text can be encoded as UTF-8; a lone surrogate ("\\ud83d"), which JSON can spell, cannot."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def normalize_unicode(name: str) -> str:
    """Return a name in Unicode NFC: macOS decomposes accents, and `José` would become two people."""
    return unicodedata.normalize("NFC", name)


@lru_cache(FEW)
def normalize_label(label: str | None) -> str | None:
    """Return a label in NFC, casefolded, without spaces and invisible characters around it; None if nothing is left."""
    # A folder name may not be valid UTF-8, but a label must be encodable.
    text = (label or "").encode("utf-8", "backslashreplace").decode()
    return AROUND.sub("", normalize_unicode(text)).casefold() or None


@lru_cache(FEW)
def normalize_split(split: str | None) -> str:
    """Return a split name for file names: 'Training' -> 'train', 'PublicTest' -> 'publictest', None -> 'train'.

    Returns "" for a name without ASCII letters or digits, such as '测试': it may mean test and must not become train.
    """
    name = re.sub(r"[^a-z0-9]+", "-", (split or "").lower()).strip("-")
    if not name and not any(letter.isalnum() for letter in split or ""):
        return TRAIN
    return SPLIT_NAMES.get(name, name)


def assign_split(group: str, rules: EntryRules) -> str:
    """Assign train, val or test by a keyed hash of the group only, independent of all other groups."""
    if not rules.val_fraction and not rules.test_fraction:
        return TRAIN
    draw = int.from_bytes(keyed_hash(group, f"split {rules.split_seed}")[:8], "big") / 2**64
    if draw < rules.val_fraction:
        return VAL
    return TEST if draw < rules.val_fraction + rules.test_fraction else TRAIN


def keyed_hash(text: str, purpose: str) -> bytes:
    """Return 16 bytes from `text`, independent for each purpose and equal on every machine."""
    key = purpose.encode()
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), key=key, digest_size=16).digest()


def archive_key(key: str) -> str:
    """Return a key for the tar: path without extension, only ASCII letters, digits, '-' and '_', max KEY_LENGTH."""
    path = PurePosixPath(key)
    stem = path.with_suffix("") if re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,4}", path.suffix) else path
    clean = re.sub(r"[^A-Za-z0-9_-]", "_", str(stem)) or "_"
    return clean if len(clean) <= KEY_LENGTH else disambiguated_key(clean, key)


def disambiguated_key(clean: str, key: str) -> str:
    """Return `clean`, truncated, with 10 hexadecimal digits that distinguish `key` from similar keys."""
    mark = keyed_hash(key, "key").hex()[:10]
    return f"{clean[: KEY_LENGTH - len(mark) - 1]}_{mark}"


def label_order(found: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """Return the order of the labels: as given in `asked`, else numeric if all are numbers, else alphabetical."""
    if asked:
        return tuple(asked)
    if all(re.fullmatch(r"-?\d+", name) for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))
