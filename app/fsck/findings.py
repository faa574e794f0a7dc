"""Findings of an examination, and the consistency rules between a batch's record and the indexes."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_FINDINGS = 10_000


@dataclass(frozen=True, slots=True)
class Finding:
    """An inconsistency.

    Attributes:
        kind: A word for programs, such as `dead_claim`.
        subject: The affected object; kind and subject together identify a finding across examinations.
        detail: One sentence.
        queue: Affected queue, if any.
        batch_id: Affected batch, if any.
        owner: Worker that holds the batch, if any.
    """

    kind: str
    subject: str
    detail: str
    queue: str = ""
    batch_id: str = ""
    owner: str = ""


@dataclass
class Examination:
    """The result of one examination.

    Attributes:
        findings: Findings by kind and subject.
        notes: Harmless observations.
        counts: Number of objects by kind, for the report.
    """

    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, subject: str, detail: str, **about: str) -> None:
        """Add a finding, up to the maximum number."""
        if len(self.findings) < MOST_FINDINGS:
            self.findings.setdefault((kind, subject), Finding(kind, subject, detail, **about))

    def count(self, what: str, n: int = 1) -> None:
        """Count for the report."""
        self.counts[what] = self.counts.get(what, 0) + n


# What the script `survey_batches` reports of a batch, in its order.
SURVEYED = ("type", "has_head", "has_data", "has_out", "is_pending", "has_deadline", "holder", "open")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """The state of one batch in the indexes of a queue and in its record, at one moment."""

    batch_id: str
    queue: str
    type: bytes
    has_head: int
    has_data: int
    has_out: int
    is_pending: int
    has_deadline: int
    holder: bytes
    open: bytes

    @property
    def owner(self) -> str:
        """The worker that holds it, or empty."""
        return text(self.holder)

    def judge(self, seen: Examination, dead: set[str]) -> None:
        """Add findings for all disagreements; `dead` are the owners without a record."""
        indexed = [bool(self.is_pending), bool(self.has_deadline), bool(self.open)]
        if not any(indexed) and not self.owner and self.type != b"hash":
            return  # it has been deleted since
        if self.type == b"none":
            self._add(seen, "no_record", "the queue lists a batch that has no record")
        elif self.type != b"hash":
            self._add(seen, "unreadable_batch", f"its record is a {text(self.type)}, should be a hash")
        elif self.has_out and (any(indexed) or self.owner):
            self._add(seen, "finished_but_listed", "it has its outcome but the queue still lists it")
        elif not self.has_out and not (self.has_head and self.has_data):
            self._add(seen, "no_input", "it waits or runs, but its record has no input")
        elif not self.has_out and not all(indexed):
            missing = ", ".join(
                n for n, is_in in zip(("pending", "deadlines", "open"), indexed, strict=True) if not is_in
            )
            self._add(seen, "not_listed", f"it has no outcome but is missing from: {missing}")
        elif self.owner in dead:
            self._add(seen, "dead_claim", f"is claimed by {self.owner}, which is dead")

    def _add(self, seen: Examination, kind: str, detail: str) -> None:
        subject = f"{self.batch_id} by {self.owner}" if kind == "dead_claim" else self.batch_id
        seen.add(kind, subject, detail, queue=self.queue, batch_id=self.batch_id, owner=self.owner)


def text(raw: bytes | str) -> str:
    """A reply of Redis as text, for any bytes."""
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
