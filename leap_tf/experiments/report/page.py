"""Writes the page of a study: Markdown, with figures as PNG."""

import os
import pathlib
import re
from collections.abc import Sequence

import jinja2
import matplotlib.figure

from leap_tf.experiments import run_tables
from leap_tf.experiments.report import figures, studies
from leap_tf.serialization import replacing, write_atomically


def write_report(
    output_dir: str | os.PathLike,
    *,
    results: str | os.PathLike | None = None,
    runs: Sequence[str | os.PathLike] = (),
    study: str | None = None,
) -> list[pathlib.Path]:
    """Writes report.md and figures/*.png for a study, or for each of several.

    `findings.md` next to the tables has sentences written by a person. Those under a section's
    title go to the top of that section, those before the first title to the top of the page.

    Args:
        output_dir: where the page goes, and the tables if they are collected.
        results: folder with the tables of a study, or with a folder of tables for each study.
        runs: folders of runs and sweeps, to collect the tables from instead.
        study: "omniglot" or "multi_cv" for its layout; the name of the tables' folder by default.

    Returns:
        The paths of the pages. The same tables give the same text.

    Raises:
        ResultsError: there is nothing to report on, or a file does not have its form.
        ValueError: both `results` and `runs` are given, or neither.
    """
    output = pathlib.Path(output_dir).expanduser()
    if (results is None) == (not runs):
        raise ValueError("Pass either results (folders of tables) or runs (folders of runs).")
    if runs:
        tables = run_tables.collect(runs)
        output.mkdir(parents=True, exist_ok=True)
        (output / "jacobian.csv").unlink(missing_ok=True)  # of other runs
        for name, content in tables.items():
            with replacing(output / name) as partial:
                partial.write_bytes(content)
    folder = output if results is None else pathlib.Path(results).expanduser()
    if (folder / "runs.csv.gz").exists():
        return [_write_page(folder, output, study or folder.resolve().name)]
    folders = sorted(path.parent for path in folder.glob("*/runs.csv.gz"))
    if not folders:
        raise run_tables.ResultsError(
            f"Neither {folder} nor a folder in it has a runs.csv.gz. Pass --results a folder of "
            "tables, or collect them from the folders of runs with --runs."
        )
    return [_write_page(each, output / each.name, study or each.name) for each in folders]


class Page:
    """Collects the sections of a page."""

    def __init__(self):
        self.sections: list[dict] = []
        self.figures: dict[str, matplotlib.figure.Figure] = {}

    def section(self, title: str) -> None:
        """Begins a section."""
        self.sections.append({"title": title, "blocks": []})

    def table(self, key: str, header, rows, note: str = "", folded: str = "") -> None:
        """Adds a table, folded away under a summary if there is one.

        `key` names its glossary in the template, and `note` stands before that.
        """
        self._add(kind="table", key=key, header=header, rows=rows, note=note, folded=folded)

    def figure(self, key: str, figure, name: str = "", note: str = "") -> None:
        """Adds a figure; `key` names its caption in the template, and its file without `name`."""
        self.figures[name or key] = figure
        self._add(kind="figure", key=key, name=name or key, note=note)

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self._add(kind="text", text=text)

    def _add(self, **block):
        self.sections[-1]["blocks"].append(block)


def _write_page(tables, output, study):
    page, path = Page(), tables / "findings.md"
    studies.add_sections(page, run_tables.read_results(tables), study)
    parts = re.split(r"^## +(.+?) *$", path.read_text() if path.exists() else "", flags=re.M)
    findings = dict(zip(["", *parts[1::2]], map(str.strip, parts[::2])))
    unknown = set(findings) - {"", *(section["title"] for section in page.sections)}
    if unknown:
        raise run_tables.ResultsError(
            f"{path} has titles that are no section's: {', '.join(unknown)}."
        )
    loader = jinja2.PackageLoader("leap_tf.experiments.report")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    environment.filters["text"] = _plain
    template = environment.get_template("report.md.jinja")
    text = template.render(title=study, findings=findings, sections=page.sections)
    (output / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in page.figures.items():
        with replacing(output / "figures" / f"{name}.png") as partial:
            figures.save(figure, partial)
    write_atomically(output / "report.md", text.rstrip() + "\n")
    return output / "report.md"


def _plain(text: str) -> str:
    """Returns text that ends no cell of a table and no line, and is no tag."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("|", "\\|").replace("\n", " ")
