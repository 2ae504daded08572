"""Results of attacks: a record for each kind of fault, and the file that holds them.

Records are plain numbers, as measured. The table of docs/reliability.md is generated from them.
"""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "reliability.jsonl"  # one campaign a line


@dataclasses.dataclass
class Fault:
    """The results of injecting one kind of fault.

    Attributes:
        fault: name of the fault.
        trials: number of runs or inputs.
        injected: number of injections.
        expected: the outcome that is required.
        failures: a line for each other outcome.
        repeated: meta-steps that had to be repeated, one number per injection.
        recovery_seconds: time from the restart until the run was as far as before, one number per
            injection.
        details: other counts by name.
    """

    fault: str
    trials: int = 0
    injected: int = 0
    expected: str = ""
    failures: list[str] = dataclasses.field(default_factory=list)
    repeated: list[int] = dataclasses.field(default_factory=list)
    recovery_seconds: list[float] = dataclasses.field(default_factory=list)
    details: dict[str, float] = dataclasses.field(default_factory=dict)

    def count(self, name: str, times: float = 1) -> None:
        """Adds to a detail."""
        self.details[name] = self.details.get(name, 0) + times


def write_results(name: str, command: str, seed: int, faults: Sequence[Fault]) -> pathlib.Path:
    """Writes the results of a campaign in place of its former ones, with command and machine."""
    content = {
        "name": name,
        "command": command,
        "seed": seed,
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "tree": "changed" if _git("status", "--porcelain", "--", "leap_tf", "bin") else "clean",
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "faults": [dataclasses.asdict(fault) for fault in faults],
    }
    campaigns = {each["name"]: each for each in read_results()} | {name: content}
    RESULTS.write_text("".join(json.dumps(campaigns[each]) + "\n" for each in sorted(campaigns)))
    return RESULTS


def read_results() -> list[dict]:
    """Returns the results of all campaigns, in the order of their names."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def _git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


def _processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
