"""Puts a report together and writes it as one HTML page and as Markdown with PNG figures."""

import dataclasses
import os
import pathlib
import re

import jinja2
import markupsafe

from leap_tf.experiments.report.ablation import ablation_section
from leap_tf.experiments.report.curves import (
    alphabets_section,
    learning_section,
    meta_training_section,
)
from leap_tf.experiments.report.document import (
    Block,
    Code,
    Details,
    KeyFigure,
    Picture,
    Report,
    Section,
)
from leap_tf.experiments.report.drawing import as_png, as_svg, with_variables
from leap_tf.experiments.report.headline import headline_section, key_figures
from leap_tf.experiments.report.jacobian import jacobian_section
from leap_tf.experiments.report.methods import colours
from leap_tf.experiments.report.paths import path_figure, paths_section
from leap_tf.experiments.report.record import record_section
from leap_tf.experiments.report.results import StudyResults, read_study
from leap_tf.experiments.report.transfer_curves import transfer_learning_section
from leap_tf.experiments.report.transfer_datasets import datasets_section
from leap_tf.experiments.report.transfer_findings import transfer_key_figures
from leap_tf.experiments.report.transfer_tables import transfer_section
from leap_tf.experiments.report.trials import trials_section
from leap_tf.experiments.report.wording import count, duration
from leap_tf.experiments.run_directory import write_atomically


def write_report(
    results: str | os.PathLike, output_dir: str | os.PathLike
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes report.html, which needs no other file, and report.md with its figures/*.png.

    The same results give the same bytes.

    Args:
        results: a folder that `read_study` can read.
        output_dir: where the files go; made if need be.

    Returns:
        The paths of the page and of the Markdown file.

    Raises:
        ResultsError: there is nothing to report on.
    """
    report = compose(read_study(results))
    folder = pathlib.Path(output_dir)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for picture in _pictures(section.blocks):
            (folder / "figures" / f"{picture.name}.png").write_bytes(as_png(picture.figure))
    page, text = folder / "report.html", folder / "report.md"
    write_atomically(page, as_html(report))
    write_atomically(text, as_markdown(report))
    return page, text


def compose(study: StudyResults) -> Report:
    """Returns the report on a study: Multi-CV if it holds out data sets, or else Omniglot.

    What the study does not have, it does not mention.
    """
    cells = [cell for sweep in study.sweeps for cell in sweep.cells]
    finished = sum(cell.finished for cell in cells)
    progress = KeyFigure(
        "training runs finished",
        f"{finished} of {len(cells)}",
        f"{duration(sum(cell.seconds for cell in cells))} of meta-training, "
        f"{sum(cell.gradient_steps for cell in cells):,} gradient steps",
    )
    if study.is_multi_cv:
        title, where, judged = "Leap on Multi-CV", _MULTI_CV, "the data set it never saw"
        figures, sections = transfer_key_figures(study.table3), _multi_cv_sections(study)
    else:
        title, where, judged = "Leap on Omniglot", _OMNIGLOT, "alphabets it never saw"
        figures = [*key_figures(study.table1), *path_figure(study.paths)]
        sections = _omniglot_sections(study)
    if study.rates is not None:
        sections.append(trials_section(study.rates))
    sections.append(record_section(study))
    lead = (
        "Leap learns the initialization from which training is shortest. Here is what it does on "
        f"{where}, beside other ways to pretrain: "
        f"{count(finished, 'training run')}, every one judged on {judged}."
    )
    return Report(
        title=title,
        lead=lead,
        key_figures=(*figures, progress),
        sections=tuple(section for section in sections if section is not None),
    )


_OMNIGLOT = "Omniglot, where a task is an alphabet"
_MULTI_CV = "Multi-CV, where a task is a whole data set of images and each is held out in turn"


def _omniglot_sections(study: StudyResults) -> list[Section | None]:
    sections: list[Section | None] = []
    if study.table1 is not None:
        sections += [
            headline_section(study.table1),
            alphabets_section(study.table1),
            learning_section(study.table1),
            meta_training_section(study.table1),
        ]
    if study.ablation is not None:
        sections.append(ablation_section(study.ablation))
    if study.jacobian is not None:
        sections.append(jacobian_section(study.jacobian))
    if study.paths is not None:
        sections.append(paths_section(study.paths))
    return sections


def _multi_cv_sections(study: StudyResults) -> list[Section | None]:
    if study.table3 is None:
        return []
    return [
        transfer_section(study.table3),
        datasets_section(study.table3),
        transfer_learning_section(study.table3),
    ]


def as_html(report: Report) -> str:
    """Returns a page without any reference to other files."""
    environment = _environment(autoescape=True)
    environment.globals["svg"] = lambda picture: markupsafe.Markup(
        as_svg(picture.figure, picture.name, picture.description)
    )
    environment.filters["variable"] = with_variables
    return environment.get_template("page.html.jinja").render(
        report=report, colours=list(colours().values())
    )


def as_markdown(report: Report) -> str:
    """Returns Markdown that refers to figures/<name>.png."""
    environment = _environment(autoescape=False)
    environment.filters["cell"] = lambda text: text.replace("|", "\\|")
    return environment.get_template("page.md.jinja").render(report=_without_tags(report))


def _environment(autoescape):
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("leap_tf.experiments.report"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["of_kind"] = lambda block, kind: type(block).__name__ == kind
    return environment


def _without_tags(part):
    """A part of a report in which HTML, which Markdown would let through, is text."""
    if isinstance(part, str):
        return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", part)
    if isinstance(part, tuple):
        return tuple(map(_without_tags, part))
    if isinstance(part, Code):  # in a fence, which nothing in it may end
        return Code(part.text.replace("```", "` ` `"))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        values = {each.name: getattr(part, each.name) for each in dataclasses.fields(part)}
        return dataclasses.replace(part, **{k: _without_tags(v) for k, v in values.items()})
    return part


def _pictures(blocks: tuple[Block, ...]):
    for block in blocks:
        if isinstance(block, Picture):
            yield block
        elif isinstance(block, Details):
            yield from _pictures(block.blocks)
