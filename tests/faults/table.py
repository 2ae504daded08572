"""The fault table of docs/reliability.md, generated from docs/results/reliability.jsonl."""

import pathlib
import statistics

from tests.faults.record import ROOT, read_results

DOCUMENT = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- The table: python -m tests.faults table -->", "<!-- End of the table. -->"
_HEADER = (
    "| fault | trials | injected | came out wrong | work made again, meta-steps | "
    "time to recover, s |\n|---|---:|---:|---|---|---|"
)


def table() -> str:
    """Returns the table of all records, and how each was made."""
    rows, sources = [], []
    for content in read_results():
        rows += [_row(fault) for fault in content["faults"]]
        machine = content["machine"]
        sources.append(
            f"- {content['name']}: `{content['command']}`, seed "
            f"{content['seed']}, commit {content['commit']}, on {machine['cores']} cores of "
            f"{machine['processor']}, Python {machine['python']}"
        )
    raw = "Raw figures are in [reliability.jsonl](results/reliability.jsonl), one campaign a line:"
    return "\n".join([_HEADER, *rows, "", raw, "", *sources])


def _row(fault) -> str:
    wrong = f"**{len(fault['failures'])}**" if fault["failures"] else "nothing"
    repeated, seconds = fault["repeated"], fault["recovery_seconds"]
    again = f"{sum(repeated)} in all, at most {max(repeated)} at once" if repeated else "–"
    recovery = f"{statistics.median(seconds):.1f} (at most {max(seconds):.1f})" if seconds else "–"
    cells = (fault["fault"], fault["trials"], fault["injected"], wrong, again, recovery)
    return f"| {' | '.join(map(str, cells))} |"


def write_document() -> pathlib.Path:
    """Puts the table into the document, between its markers."""
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(), table()))
    return DOCUMENT


def with_table(document: str, content: str) -> str:
    """Returns a document with this table between its markers."""
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"The document has no markers {_BEGIN} and {_END}.")
    return f"{before}{_BEGIN}\n\n{content}\n\n{_END}{after}"
