"""What an examination of the pool may find, and what the indexes and the record of a batch must agree on."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_FINDINGS = 10_000


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: A word for programs, such as `dead_claim`.
        subject: What it is about; kind and subject together make it the same one when looked at again.
        detail: One sentence.
        queue: Queue that it belongs to, where it does.
        batch_id: Batch that it is about, where it is.
        owner: Worker that holds the batch, where one does.
    """

    kind: str
    subject: str
    detail: str
    queue: str = ""
    batch_id: str = ""
    owner: str = ""


@dataclass
class Examination:
    """What one look at the pool saw.

    Attributes:
        findings: By kind and subject.
        notes: Worth knowing and harmless.
        counts: How many there are of what, for the report.
    """

    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, subject: str, detail: str, **about: str) -> None:
        """Note a finding, unless there are too many to hold."""
        if len(self.findings) < MOST_FINDINGS:
            self.findings.setdefault((kind, subject), Finding(kind, subject, detail, **about))

    def count(self, what: str, n: int = 1) -> None:
        """Count for the report."""
        self.counts[what] = self.counts.get(what, 0) + n


@dataclass(frozen=True, slots=True)
class BatchState:
    """One batch, as the indexes of a queue and its record show it at one moment."""

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
        """Worker that holds it, or empty."""
        return text(self.holder)

    def judge(self, seen: Examination, dead: set[str]) -> None:
        """Note what does not agree; `dead` are the owners without a record."""
        indexed = [bool(self.is_pending), bool(self.has_deadline), bool(self.open)]
        if not any(indexed) and not self.owner and self.type != b"hash":
            return  # it has gone since
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
    """What Redis answered, whatever its bytes."""
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
