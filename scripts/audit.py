# ruff: noqa: S603  (the command is a list put together in this file; no shell reads it)
"""Look every pinned package up in the advisory services: ``make audit``. Needs pip-audit in ``.venv`` (``make setup``).

Exit status 1 where a package has a known vulnerability, or the audit failed; 0 where none has, or, said loudly,
where no service can be reached. A package that a service does not know does not count as audited: through a mirror
without advisories all packages would, and pip-audit would find nothing wrong with any.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVICES = ("pypi", "osv")
TIMEOUT_S = "10"
OWN = ("foreign-clients", "docs")  # locks that are each resolved on its own
# What pip-audit and the libraries below it say where a service cannot be reached.
UNREACHABLE = ("ConnectionError", "Could not connect", "Max retries exceeded", "Timeout", "timed out")


@dataclass(frozen=True)
class Findings:
    """What one service said.

    Attributes:
        audited: Packages that it knows.
        skipped: Packages that it does not.
        vulnerable: A line for each known vulnerability.
    """

    audited: int
    skipped: list[str]
    vulnerable: list[str]

    def joined(self, other: Findings) -> Findings:
        """Both together."""
        return Findings(
            self.audited + other.audited, self.skipped + other.skipped, self.vulnerable + other.vulnerable
        )


def main() -> int:
    """Audit by the first service that answers."""
    for service in SERVICES:
        found = Findings(0, [], [])
        for locks in lock_groups(ROOT / "requirements"):
            done = subprocess.run(command(service, locks), capture_output=True, text=True, check=False)
            part = read(done.stdout)
            if part is None and not any(sign in done.stderr for sign in UNREACHABLE):
                print(done.stderr, file=sys.stderr)
                return 1
            found = found.joined(part or Findings(0, [], []))
        if found.audited:
            return report(service, found)
    print(
        "NOTICE: the dependency audit was SKIPPED: no advisory service can be reached from here",
        file=sys.stderr,
    )
    return 0


def lock_groups(folder: Path) -> list[list[Path]]:
    """The locks that one run can read: pip-audit refuses locks that pin different versions of a package.

    ``scripts/lock.py`` gives a package one version in all locks but those of other environments.
    """
    locks = sorted(folder.glob("*.lock"))
    alone = [[lock] for lock in locks if lock.stem in OWN]
    together = [lock for lock in locks if lock.stem not in OWN]
    return [group for group in (together, *alone) if group]


def command(service: str, locks: list[Path]) -> list[str]:
    """pip-audit on the locks as they are, without resolving or installing anything."""
    line = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--timeout", TIMEOUT_S]
    line += ["--format", "json", "--progress-spinner", "off", "--no-deps", "--disable-pip"]
    return line + [word for lock in locks for word in ("--requirement", str(lock))]


def read(output: str) -> Findings | None:
    """What pip-audit found; None where it did not come so far."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        return None
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    vulnerable = [
        f"{each['name']} {each['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for each in packages
        for found in each.get("vulns", [])
    ]
    return Findings(len(packages) - len(skipped), skipped, vulnerable)


def report(service: str, found: Findings) -> int:
    """Print what was found; the exit status."""
    print(f"{found.audited} packages audited by {service}, {len(found.vulnerable)} vulnerabilities known")
    if found.skipped:
        unknown = sorted(set(found.skipped))
        print(f"NOTICE: {len(unknown)} packages it does not know: {', '.join(unknown)}")
    print(*found.vulnerable, sep="\n", end="\n" if found.vulnerable else "")
    return 1 if found.vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
