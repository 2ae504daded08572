"""The Multi-CV report, from small result folders whose figures can be computed by hand."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest

from leap_tf.experiments.report.checks import ResultsError
from leap_tf.experiments.report.document import Table, Value
from leap_tf.experiments.report.page import as_html, as_markdown, compose, write_report
from leap_tf.experiments.report.paper_transfer import (
    LABELS,
    METHODS,
    TABLE_3,
    dataset_order,
    mean_over,
)
from leap_tf.experiments.report.results import read_study, read_sweep
from leap_tf.experiments.report.statistics import Estimate, average, ratio
from leap_tf.experiments.report.transfer import (
    harms,
    last_error,
    over_datasets,
    relative_to_fresh,
    shared_datasets,
    transfers,
)
from leap_tf.experiments.report.trials import chosen, trials_of
from leap_tf.experiments.study import as_record
from leap_tf.training import Evaluation, TaskEvaluation
from tests.result_folders import Balanced, outcome, task, write_sweep


def judged(error, area):
    """A task judged with an error and an area in %; diverged if the error is None."""
    if error is None:
        return outcome(task(None), area=area)
    return outcome(task(error / 100, parameters=1234), area=area)


def write_transfer(results, figures):
    """Writes table3/ from (method, data set) to a pair of error and area at every seed.

    A seed with None in place of a pair is not finished.
    """
    cells = [
        (
            {"seed": str(seed), "method": method, "heldout": dataset},
            None if pair is None else judged(*pair),
        )
        for (method, dataset), seeds in figures.items()
        for seed, pair in enumerate(seeds)
    ]
    write_sweep(results / "table3", cells, study="multi_cv")
    for run in (results / "table3" / "cells").glob("*-none-*"):
        (run / "metrics.jsonl").unlink()  # a run without meta-steps leaves none


FIGURES = {
    ("leap", "mnist"): [(2.0, 10.0), (4.0, 14.0)],
    ("leap", "cifar10"): [(40.0, 50.0), (42.0, 54.0)],
    ("hat", "mnist"): [(6.5, 30.0), (10.0, 34.0)],
    ("hat", "cifar10"): [(50.0, 56.0), (50.0, 60.0)],
    ("none", "mnist"): [(6.0, 20.0), (6.0, 28.0)],
    ("none", "cifar10"): [(52.0, 60.0), (56.0, 60.0)],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A results folder with table3/ and rates/, and the report on it: drawing takes time."""
    folder = tmp_path_factory.mktemp("multi_cv")
    write_transfer(folder / "results", FIGURES)
    write_rates(folder / "results")
    write_report(folder / "results", folder / "report")
    return folder


def write_rates(results, missing=()):
    """Writes rates/: three outer rates of Leap, each on the validation part of two data sets."""
    areas = {"0.003": (20.0, 60.0), "0.01": (30.0, 40.0), "0.03": (10.0, None)}
    write_sweep(
        results / "rates",
        [
            (
                {"seed": "100", "method": "leap", "heldout": dataset, "outer": outer},
                None if (outer, dataset) in missing else judged(None if area is None else 5, area),
            )
            for dataset, place in (("mnist", 0), ("cifar10", 1))
            for outer, pair in areas.items()
            for area in [pair[place]]
        ],
        study="multi_cv",
    )
    evaluate_on(results / "rates", "validation")


def evaluate_on(folder, part):
    """Says in every configuration under a folder which part of the data judges."""
    for path in folder.rglob("config.gin"):
        path.write_text(f'{path.read_text()}multi_cv_splits.evaluate_on = "{part}"\n')


def section(report, identifier):
    return next(each for each in report.sections if each.identifier == identifier)


def said(report, identifier):
    return " ".join(section(report, identifier).findings).replace("\xa0", " ")


def tables(report, identifier):
    """Returns the texts of every table of a section, row by row."""
    return [
        [[value.text.replace("\xa0", " ") for value in row] for row in block.rows]
        for block in section(report, identifier).blocks
        if isinstance(block, Table)
    ]


def report_on(folder, figures):
    write_transfer(folder, figures)
    return compose(read_study(folder))


# Numbers


def test_ratios_and_averages_are_taken_seed_by_seed():
    first, second = Estimate({"0": 6.0, "1": 4.0, "2": 1.0}), Estimate({"1": 2.0, "0": 4.0})
    assert ratio(first, second).values == {"0": 1.5, "1": 2.0}
    assert ratio(first, Estimate({"0": 0.0, "1": 8.0})).values == {"1": 0.5}
    assert average([first, second]).values == {"0": 5.0, "1": 3.0}
    assert average([]).values == {}


def test_the_training_error_is_that_of_the_last_fifty_batches():
    assert last_error([1.0] * 10 + [0.5, 0.25] * 25) == pytest.approx(37.5)
    assert last_error([1.0, 0.0]) == 50.0


def test_transfers_of_a_sweep(study):
    found = transfers(read_sweep(study / "results" / "table3"))
    assert {name: list(of_methods) for name, of_methods in found.items()} == {
        "mnist": ["leap", "hat", "none"],
        "cifar10": ["leap", "hat", "none"],
    }
    leap = found["mnist"]["leap"]
    assert leap.error.values == pytest.approx({"0": 2.0, "1": 4.0})
    assert leap.area.values == {"0": 10.0, "1": 14.0}
    assert leap.training_error.mean == pytest.approx(100 * (1.0 + 0.5 + 0.25) / 3)
    assert leap.seconds.values == {"0": 6.0, "1": 6.0}  # three meta-steps of two seconds
    assert found["mnist"]["none"].seconds.values == {}
    assert (leap.parameters, leap.examples) == ((1234,), (10,))


def test_means_over_data_sets_need_all_of_them(tmp_path):
    figures = {
        **FIGURES,
        ("leap", "cifar10"): [(40.0, 50.0), None],
        ("leap", "svhn"): [(1.0, 1.0)],
    }
    write_transfer(tmp_path, figures)
    found = transfers(read_sweep(tmp_path / "table3"))
    shared = shared_datasets(found)
    assert shared == ["mnist", "cifar10"]  # svhn has only Leap
    means = over_datasets(found, shared, "area")
    assert means["leap"].values == {"0": 30.0}
    assert means["none"].values == {"0": 40.0, "1": 44.0}


def test_pretraining_hurts_where_it_is_worse_than_none(study):
    found = transfers(read_sweep(study / "results" / "table3"))
    hurt, pairs = harms(found, "error")
    assert pairs == 4
    assert [(each.method, each.dataset, each.settled) for each in hurt] == [("hat", "mnist", False)]
    assert hurt[0].gap.values == pytest.approx({"0": 0.5, "1": 4.0})


def test_ratios_to_no_pretraining():
    means = {"leap": Estimate({"0": 1.0}), "none": Estimate({"0": 4.0, "1": 1.0})}
    assert relative_to_fresh(means) == {"leap": Estimate({"0": 0.25})}
    assert relative_to_fresh({"leap": Estimate({"0": 1.0})}) == {}


def test_the_papers_table():
    assert list(TABLE_3) == list(LABELS)
    assert all(list(row) == list(METHODS) for row in TABLE_3.values())
    assert TABLE_3["cifar100"]["hat"] == {"error": 62.0, "training_error": 49.8, "area": 58.4}
    assert TABLE_3["facescrub"]["none"] == {"error": 18.2, "training_error": 0.0, "area": 10.5}
    columns = {
        method: [
            sum(row[method][measure] for row in TABLE_3.values())
            for measure in ("error", "training_error", "area")
        ]
        for method in METHODS
    }
    # Columns added up from the paper itself.
    assert columns["leap"] == pytest.approx([118.4, 51.8, 91.5])
    assert columns["none"] == pytest.approx([127.8, 60.6, 111.4])
    assert mean_over(["mnist", "notmnist"], "leap")["error"] == pytest.approx(3.0)
    assert mean_over(["mnist", "unknown"], "leap") == mean_over([], "leap") == {}
    assert dataset_order(["zeta", "cifar10", "alpha", "mnist"]) == [
        "mnist", "cifar10", "alpha", "zeta",
    ]  # fmt: skip


# Pages


def test_trials_alone_are_known_as_those_of_multi_cv(tmp_path):
    write_rates(tmp_path)
    report = compose(read_study(tmp_path))
    assert report.title == "Leap on Multi-CV"
    assert [each.identifier for each in report.sections] == ["rates", "record"]


def test_the_page_of_multi_cv(study):
    report = compose(read_study(study / "results"))
    assert report.title == "Leap on Multi-CV"
    assert [each.identifier for each in report.sections] == [
        "transfer", "datasets", "learning", "rates", "record",
    ]  # fmt: skip
    figures = {each.label: each.value for each in report.key_figures}
    assert figures["area under training error, Leap"] == "32.0"
    hurts = next(each for each in report.key_figures if "hurts" in each.label)
    assert hurts.value == "0 of 4"  # HAT on MNIST by 0.5 and 4.0 points, which settles nothing
    assert hurts.note.endswith("1 of 4 higher at all")
    means, against = tables(report, "transfer")
    # Seeds of Leap: (2 + 40)/2 and (4 + 42)/2; (10 + 50)/2 and (14 + 54)/2.
    assert means[0][0:2] == ["Leap", "22.0 ± 1.0"]
    assert means[0][3:] == ["32.0 ± 2.0", "1,500", "6 s", "10.9 / 5.5 / 9.1"]
    assert means[2][4:6] == ["–", "–"]
    # Leap minus HAT at the two seeds: 30 − 43 and 34 − 47; 21 − 28.25 and 23 − 30.
    assert against[0] == [
        "HAT", "−13.0 ± 0.0", "2 of 2 data sets", "−7.1 ± 0.1", "2 of 2 data sets",
    ]  # fmt: skip


def test_every_data_set_has_its_rows_and_the_papers_beside_them(study):
    (rows,) = tables(compose(read_study(study / "results")), "datasets")
    headings = [row[0] for row in rows if len(row) == 1]
    assert headings == [
        "FaceScrub", "notMNIST", "MNIST", "Fashion-MNIST", "CIFAR-10", "SVHN", "CIFAR-100",
        "Traffic Signs",
    ]  # fmt: skip
    leap = rows[rows.index(["MNIST"]) + 1]
    assert leap == [
        "Leap", "3.0 ± 1.0", "58.3 ± 0.0", "12.0 ± 2.0", "1,234", "1,500", "6 s",
        "0.7 / 0.1 / 0.6",
    ]  # fmt: skip
    text = (study / "report" / "report.md").read_text()
    assert "| **FaceScrub**, could not be obtained here | | | | | | | |" in text
    assert "| **SVHN**, is not part of this sweep |" in text
    assert "| FaceScrub | 19.9 / 0.0 / 11.6 |" in text


def test_findings_flip_when_numbers_flip(tmp_path):
    ahead = report_on(tmp_path / "a", FIGURES)
    assert (
        "Leap has the lowest mean area under the training error over 2 held-out data sets: 32.0 "
        "± 2.0; No pretraining is next with 42.0 ± 2.0, 10.0 ± 0.0 more on the same seeds. All 2 "
        "seeds agree" in said(ahead, "transfer")
    )
    assert (
        "By mean test error on the same seeds, Leap is lower than HAT and No pretraining; the "
        "seeds settle it for HAT and No pretraining." in said(ahead, "transfer")
    )
    assert (
        "By mean test error: the order is Leap < HAT < No pretraining; in the paper it is Leap < "
        "No pretraining < HAT. 1 of 3 pairs is the other way round" in said(ahead, "transfer")
    )
    assert (
        "By test error, pretraining is worse than none in 1 of 4 pairs of method and data set: HAT "
        "on MNIST. All seeds agree, and zero is outside the gap's 95 % confidence interval "
        "(Student's t), in 0 of them." in said(ahead, "datasets")
    )
    behind = report_on(
        tmp_path / "b",
        {**FIGURES, ("leap", "mnist"): [(90.0, 95.0), (92.0, 95.0)]},
    )
    assert "HAT has the lowest mean test error over 2 held-out data sets: 29.1" in said(
        behind, "transfer"
    )
    assert "Leap is not lower than HAT and No pretraining" in said(behind, "transfer")
    assert "Leap on MNIST; HAT on MNIST" in said(behind, "datasets")
    assert "in 1 of them: Leap on MNIST." in said(behind, "datasets")
    good = report_on(tmp_path / "c", {pair: FIGURES[pair] for pair in FIGURES if pair[0] != "hat"})
    assert "pretraining hurts in none of 2 pairs" in said(good, "datasets")


def test_a_gap_may_be_clear_over_data_sets_where_the_seeds_are_not(tmp_path):
    figures = FIGURES | {
        # Test errors 5 ± 4 above Leap's, on both data sets alike; areas are higher on one of them.
        ("hat", "mnist"): [(3.0, 10.0), (13.0, 34.0)],
        ("hat", "cifar10"): [(41.0, 56.0), (51.0, 60.0)],
    }
    text = said(report_on(tmp_path, figures), "transfer")
    assert (
        "Leap is lower than HAT and No pretraining; the seeds settle it for No pretraining. Data "
        "set by data set, it has the same sign on all of them for HAT, and zero" in text
    )
    assert text.count("Data set by data set") == 1  # not by area


def test_one_seed_settles_nothing(tmp_path):
    report = report_on(tmp_path, {pair: seeds[:1] for pair, seeds in FIGURES.items()})
    assert "no gap is settled" in said(report, "transfer")
    assert "HAT on MNIST. With one seed there is no telling" in said(report, "datasets")


def test_missing_cells_are_named_and_diverged_tasks_counted(tmp_path):
    figures = {**FIGURES, ("hat", "cifar10"): [(None, None), None]}
    report = report_on(tmp_path, figures)
    text = as_markdown(report).replace("\xa0", " ")
    assert "Missing: 1 of 12 cells not finished: 1-hat-cifar10." in text
    assert "Tasks diverged and are left out of the means: HAT 1 of 3." in text
    (rows,) = tables(report, "datasets")
    assert rows[rows.index(["CIFAR-10"]) + 2][:4] == ["HAT", "–", "–", "–"]
    assert tables(report, "transfer")[0][1][1] == "–"  # no mean without CIFAR-10


def test_a_planned_data_set_has_a_row_before_it_is_finished(tmp_path):
    figures = {**FIGURES, ("leap", "svhn"): [None, None]}
    write_transfer(tmp_path, figures)
    assert "| **SVHN**, not finished |" in as_markdown(compose(read_study(tmp_path)))


def test_captions_say_that_hats_training_error_is_of_soft_attention(tmp_path):
    with_hat = as_markdown(report_on(tmp_path / "a", FIGURES))
    assert with_hat.count("while its attention is annealed") == 3  # means, data sets, curves
    without = {pair: seeds for pair, seeds in FIGURES.items() if pair[0] != "hat"}
    assert "attention" not in as_markdown(report_on(tmp_path / "b", without))


def test_nothing_finished_and_nothing_shared(tmp_path):
    empty = report_on(tmp_path / "a", {("leap", "mnist"): [None]})
    assert [each.identifier for each in empty.sections] == ["transfer", "record"]
    assert "No cell is finished" in said(empty, "transfer")
    apart = report_on(tmp_path / "b", {("leap", "mnist"): [(1, 1)], ("none", "svhn"): [(2, 2)]})
    assert "No held-out data set is finished by every method" in said(apart, "transfer")
    assert "no method to hold against no pretraining yet" in said(apart, "datasets")
    assert as_html(apart)


def test_what_judging_writes_is_what_the_report_reads(tmp_path):
    evaluation = Evaluation(
        (
            TaskEvaluation(
                name="mnist",
                error=0.25,
                loss=1.0,
                examples=8,
                training_errors=np.linspace(1.0, 0.0, 101),
                training_losses=np.linspace(2.0, 0.0, 101),
                path_length=1.0,
                path_energy=1.0,
                parameters=77,
            ),
        )
    )
    cell = ({"seed": "0", "method": "leap", "heldout": "mnist"}, as_record(evaluation, 0.1))
    write_sweep(tmp_path / "table3", [cell])
    found = transfers(read_sweep(tmp_path / "table3"))["mnist"]["leap"]
    assert found.parameters == (77,)
    assert found.error.mean == 25.0
    assert found.area.mean == pytest.approx(50.0)
    assert found.training_error.mean == pytest.approx(24.5)  # of 0.49, 0.48, …, 0


def test_results_without_parameters_are_read(tmp_path):
    cell = ({"seed": "0", "method": "leap", "heldout": "mnist"}, outcome(task(0.1)))
    write_sweep(tmp_path / "table3", [cell])
    (rows,) = tables(compose(read_study(tmp_path)), "datasets")
    assert rows[rows.index(["MNIST"]) + 1][4] == "–"


def test_table3_is_judged_by_test_images_and_nothing_else(tmp_path):
    write_transfer(tmp_path, FIGURES)
    evaluate_on(tmp_path / "table3", "test")
    assert compose(read_study(tmp_path))
    evaluate_on(tmp_path / "table3" / "cells" / "0-leap-mnist", "validation")
    with pytest.raises(ResultsError, match="0-leap-mnist of table3 is judged by validation"):
        compose(read_study(tmp_path))


def test_a_report_is_on_one_study(tmp_path):
    write_transfer(tmp_path, FIGURES)
    write_sweep(tmp_path / "table1", [({"method": "leap", "seed": "0"}, outcome(task(0.1)))])
    with pytest.raises(ResultsError, match="Put each into a folder of its own"):
        read_study(tmp_path)


def test_cells_that_name_no_data_set_are_refused(tmp_path):
    write_sweep(tmp_path / "table3", [({"method": "leap", "seed": "0"}, outcome(task(0.1)))])
    with pytest.raises(ResultsError, match="0 of table3 has no value on the axis"):
        compose(read_study(tmp_path))


def test_the_page_needs_no_other_file_and_parses(study):
    content = (study / "report" / "report.html").read_text()
    assert not re.search(r"https?:|@import|<link|<script|<img|<iframe|src=", content)
    parser = Balanced()
    parser.feed(content)
    parser.close()
    assert parser.open == []
    assert len(parser.identifiers) == len(set(parser.identifiers))
    drawn = re.findall(r"<svg.*?</svg>", content, flags=re.DOTALL)
    assert len(drawn) == 2
    for svg in drawn:
        xml.etree.ElementTree.fromstring(svg)
        assert "var(--method-hat)" in svg
    figures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (study / "report" / "report.md").read_text())
    assert figures == ["figures/relative.png", "figures/learning.png"]
    assert all((study / "report" / figure).is_file() for figure in figures)


def test_the_same_results_give_the_same_bytes(study, tmp_path):
    write_report(study / "results", tmp_path)
    one, two = (
        {path.relative_to(each): path.read_bytes() for path in each.rglob("*") if path.is_file()}
        for each in (study / "report", tmp_path)
    )
    assert one == two
    assert len(one) == 4


def test_columns_line_up_as_in_the_first_whole_row():
    heading, whole = (Value("a"),), (Value("b", numeric=False), Value("1"))
    assert Table("", ("x", "y"), (heading, whole)).numeric == (False, True)
    assert Table("", ("x", "y"), (heading,)).numeric == (False, False)


# Trials


def test_a_trial_stands_by_its_mean_over_data_sets(study):
    sweep = read_sweep(study / "results" / "rates")
    trials = trials_of(sweep.cells)
    assert [trial.values for trial in trials] == [
        {"method": "leap", "outer": outer} for outer in ("0.003", "0.01", "0.03")
    ]
    assert [trial.area for trial in trials] == [40.0, 35.0, None]  # the last diverged on one
    assert chosen(trials) is trials[1]
    report = compose(read_study(study / "results"))
    (rows,) = tables(report, "rates")
    assert rows[1] == ["Leap", "0.01", "30.0", "40.0", "35.0", "5.0", "0 of 2", "✓ chosen"]
    assert rows[2] == ["Leap", "0.03", "10.0", "–", "–", "–", "1 of 2", ""]
    caption = section(report, "rates").blocks[-1].caption
    assert caption.startswith("Judged on the validation split, seed 100. Each trial on 2 held-out")
    assert said(report, "rates") == "Every one of 1 method has 3 trials. Leap: outer rate 0.01."


def test_only_whole_trials_compete(tmp_path):
    write_rates(tmp_path, missing={("0.01", "cifar10")})
    sweep = read_sweep(tmp_path / "rates")
    trials = trials_of(sweep.cells)
    assert trials[1].area == 30.0  # the smallest, and of one data set only
    assert chosen(trials) is trials[0]
    report = compose(read_study(tmp_path))
    (rows,) = tables(report, "rates")
    assert rows[1][-1] == "1 of 2 cells"
    assert "Leap (so far, of 2 of 3): outer rate 0.003" in said(report, "rates")
    assert chosen([]) is None
