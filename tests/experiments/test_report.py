"""The report, from small result folders whose figures can be computed by hand."""

import json
import math
import re
import shlex
import xml.etree.ElementTree

import numpy as np
import pytest
import scipy.stats

from leap_tf.experiments.report.ablation import effect
from leap_tf.experiments.report.checks import ResultsError
from leap_tf.experiments.report.methods import METHODS, colours, in_order, method_look
from leap_tf.experiments.report.page import as_html, compose, write_report
from leap_tf.experiments.report.paper import ALPHABETS, TABLE_1
from leap_tf.experiments.report.record import cell_command, sweep_command
from leap_tf.experiments.report.results import natural_order, read_study, read_sweep
from leap_tf.experiments.report.statistics import (
    Estimate,
    adaptation_curve,
    curve_over,
    difference,
    is_settled,
    metric_curve,
    student_t,
    summarise,
)
from leap_tf.experiments.report.wording import (
    change,
    emphasised,
    first_place,
    listing,
    number,
    order_against,
)
from tests.result_folders import Balanced, outcome, task, write_sweep


def write_table(results, errors, alphabets="20"):
    """Writes table1/ from each method to its error at every seed, None if missing."""
    write_sweep(
        results / "table1",
        [
            (
                {"method": method, "alphabets": alphabets, "seed": str(seed)},
                None if error is None else outcome(task(error)),
            )
            for method, seeds in errors.items()
            for seed, error in enumerate(seeds)
        ],
    )


def write_everything(results):
    write_table(results, {"leap": [0.3, 0.34], "reptile": [0.4, 0.42], "none": [0.7, None]})
    write_sweep(
        results / "ablation",
        [
            (
                {"distance": distance, "loss": loss, "stabilizer": stabilizer, "seed": "0"},
                outcome(task(0.5)),
            )
            for distance in ("length", "energy")
            for loss in ("loss", "noloss")
            for stabilizer in ("stab", "nostab")
        ],
    )
    write_sweep(results / "paths", [({"method": "leap", "seed": "0"}, outcome(task(0.3)))])
    write_sweep(
        results / "rates",
        [
            ({"method": "leap", "outer": outer, "inner": "0.1"}, outcome(task(0.3), area=area))
            for outer, area in (("0.05", 40.0), ("0.1", 30.0), ("0.2", 35.0))
        ],
    )
    (results / "jacobian").mkdir()
    for rate, rho in ((0.1, [0.0, 0.5]), (0.5, [0.0, None])):
        record = {
            "learning_rate": rate,
            "task": 0,
            "steps": [0, 5],
            "rho": rho,
            "parameters": 288,
            "matrix_bytes": 2**20,
            "seconds": 3.0,
        }
        (results / "jacobian" / f"{rate}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory):
    """A results folder with everything, and the report on it, written once: drawing takes time."""
    folder = tmp_path_factory.mktemp("study")
    write_everything(folder / "results")
    write_report(folder / "results", folder / "report")
    return folder


def section(report, identifier):
    return next(each for each in report.sections if each.identifier == identifier)


def findings(results, identifier="methods"):
    return said(compose(read_study(results)), identifier)


def said(report, identifier):
    return " ".join(section(report, identifier).findings).replace("\xa0", " ")


def rows(report, identifier):
    table = next(each for each in section(report, identifier).blocks if hasattr(each, "rows"))
    return [[value.text.replace("\xa0", " ") for value in row] for row in table.rows]


# Statistics


def test_mean_and_standard_error_over_seeds():
    estimate = Estimate({"0": 1.0, "1": 2.0, "2": 6.0})
    assert estimate.mean == 3.0
    assert estimate.standard_error == pytest.approx(math.sqrt(7.0 / 3.0))  # s² = (4 + 1 + 9)/2
    assert Estimate({"0": 1.0}).standard_error is None
    assert Estimate({}).mean == math.inf


def test_differences_are_taken_seed_by_seed():
    gap = difference(Estimate({"0": 5.0, "1": 7.0}), Estimate({"1": 4.0, "0": 1.0, "2": 9.0}))
    assert gap.values == {"0": 4.0, "1": 3.0}


def test_a_gap_is_settled_if_its_confidence_interval_leaves_out_zero():
    """Of two seeds it reaches 12.7 standard errors, of three 4.3."""
    assert not is_settled(Estimate({"0": 4.0, "1": 3.0}))  # 3.5 ± 0.5
    assert is_settled(Estimate({"0": 4.0, "1": 3.5}))  # 3.75 ± 0.25
    assert not is_settled(Estimate({"0": 1.0, "1": 2.0, "2": 3.0}))  # 2 ± 0.58
    assert is_settled(Estimate({"0": 2.0, "1": 3.0, "2": 4.0}))  # 3 ± 0.58
    assert is_settled(Estimate({"0": -2.0, "1": -3.0, "2": -4.0}))
    assert not is_settled(Estimate({"0": 4.0, "1": -3.0}))
    assert not is_settled(Estimate({"0": 4.0}))
    assert not is_settled(Estimate({"0": 0.0, "1": 0.0}))


def test_one_null_comparison_in_twenty_is_called_settled():
    rng = np.random.default_rng(0)
    for seeds in (2, 3, 5):
        settled = [
            is_settled(Estimate(dict(enumerate(rng.normal(size=seeds))))) for _ in range(4000)
        ]
        assert np.mean(settled) < 0.06


@pytest.mark.parametrize("seeds", range(2, 31))
def test_the_quantiles_of_students_t(seeds):
    assert student_t(seeds) == pytest.approx(scipy.stats.t.ppf(0.975, seeds - 1), abs=6e-4)
    assert student_t(1000) == student_t(30)


def test_a_summary_leaves_diverged_tasks_out_and_counts_them():
    summary = summarise(
        {
            "0": outcome(task(0.2, steps=1), task(0.4)),
            "1": outcome(task(0.6, steps=2), task(None)),
            "2": outcome(task(None), task(None)),
        }
    )
    assert summary.error.values == {"0": pytest.approx(30.0), "1": pytest.approx(60.0)}
    assert summary.task_errors == pytest.approx((20.0, 40.0, 60.0))
    assert summary.steps.values == {"0": 1.0, "1": 2.0}
    assert summary.capped_steps.values == {"0": 2.0, "1": 2.0}  # (1 + 3)/2 and 2
    assert (summary.tasks, summary.reached, summary.diverged) == (6, 2, 3)


def test_curves_over_seeds():
    curve = curve_over([[1.0, 2.0, 9.0], [3.0, 6.0]])
    assert curve.mean.tolist() == [2.0, 4.0]
    assert curve.spread == pytest.approx([1.0, 2.0])
    assert curve_over([[1.0]]).spread.tolist() == [0.0]


def test_adaptation_curves_leave_diverged_tasks_out():
    seeds = [outcome(task(0.1, curve=(1.0, 0.0)), task(None), task(0.1, curve=(0.0, 1.0)))]
    assert adaptation_curve(seeds, "training_errors", 1).mean.tolist() == [0.5, 0.5]
    assert adaptation_curve([outcome(task(None))], "training_errors", 1) is None


def test_metrics_are_averaged_where_every_run_has_them():
    first = [{"meta_step": 1, "a": 1.0}, {"meta_step": 2, "a": 2.0}, {"meta_step": 3}]
    second = [{"meta_step": 1, "a": math.inf}, {"meta_step": 2, "a": 4.0}]
    curve = metric_curve([first, second], "a")
    assert (curve.x.tolist(), curve.mean.tolist()) == ([2], [3.0])
    assert metric_curve([first], "a", window=2).mean.tolist() == [1.0, 1.5]
    assert metric_curve([first, second], "b") is None
    assert metric_curve([], "a") is None


def test_an_ablation_averages_pairs_that_differ_in_one_switch():
    errors = {
        ("length", "loss", "stab"): Estimate({"0": 1.0, "1": 2.0}),
        ("length", "loss", "nostab"): Estimate({"0": 3.0, "1": 2.0}),
        ("energy", "loss", "stab"): Estimate({"0": 2.0, "1": 5.0}),
        ("energy", "loss", "nostab"): Estimate({"0": 6.0}),
    }
    assert effect(errors, 0).values == {"0": 2.0}  # (2−1 + 6−3)/2
    assert effect(errors, 2).values == {"0": 3.0}  # (3−1 + 6−2)/2
    assert effect(errors, 1).values == {}


# Words


def test_words_follow_the_numbers():
    assert change(60.0, 34.5, unit=" %") == "falls from 60.0 % to 34.5 %"
    assert change(1.0, 2.0) == "rises from 1.0 to 2.0"
    assert change(1.01, 1.02) == "stays at 1.0"
    assert number(None) == number(float("nan")) == "–"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert emphasised({"a": 1.0, "b": 1.0, "c": 2.0}) == {"a", "b"}
    assert emphasised({"a": 1.0, "b": 1.0}) == emphasised({"a": math.inf}) == set()
    assert natural_order(["10", "2", "a", "2"]) == ["2", "10", "a"]


def test_an_order_is_held_against_another():
    assert order_against(["a", "x", "b"], ["a", "b", "c"]) == "The order a < b is the paper's."
    turned = order_against(["b", "a", "c"], ["a", "b", "c"])
    assert turned.endswith("1 of 3 pairs is the other way round: b before a.")
    assert order_against(["a"], ["a", "b"]) == ""


def test_one_seed_settles_nothing():
    sentence = first_place({"A": Estimate({"0": 1.0}), "B": Estimate({"0": 2.0})}, "error", "", "")
    assert "A has the lowest error" in sentence
    assert "With one seed there is no telling" in sentence


# Reports


def test_findings_flip_when_numbers_flip(tmp_path):
    write_table(tmp_path / "a", {"leap": [0.31, 0.33], "reptile": [0.4, 0.42], "none": [0.7, 0.7]})
    write_table(tmp_path / "b", {"leap": [0.8, 0.84], "reptile": [0.4, 0.42], "none": [0.7, 0.7]})
    write_table(tmp_path / "c", {"leap": [0.3, 0.5], "reptile": [0.4, 0.42], "none": [0.7, 0.7]})
    ahead, behind, open_ = (findings(tmp_path / name) for name in "abc")
    assert "Leap has the lowest held-out error: 32.0 ± 1.0 %; Reptile is next with 41.0" in ahead
    assert "9.0 ± 0.0 points more on the same seeds. All 2 seeds agree" in ahead
    assert "Of 2 pretrained methods, 2 have a lower" in ahead
    assert "The order Leap < Reptile < No pretraining is the paper's." in ahead
    assert "Reptile has the lowest held-out error: 41.0" in behind
    assert "Of 2 pretrained methods, 1 has a lower" in behind
    assert "2 of 3 pairs are the other way round" in behind
    assert "2 seeds do not settle which of the two is lower" in open_


def test_missing_cells_are_named_and_diverged_tasks_counted(tmp_path):
    write_sweep(
        tmp_path / "table1",
        [
            ({"method": "leap", "alphabets": "20", "seed": "0"}, outcome(task(0.1), task(None))),
            ({"method": "leap", "alphabets": "20", "seed": "1"}, None),
        ],
    )
    page = as_html(compose(read_study(tmp_path)))
    assert "Missing: 1 of 2 cells not finished: leap-20-1." in page
    assert "Tasks diverged and are left out of the means: Leap 1 of 2." in page
    assert "Only Leap has results so far" in page


def test_a_method_whose_tasks_all_diverged_has_no_error_and_is_shown(tmp_path):
    write_sweep(
        tmp_path / "table1",
        [
            ({"method": "leap", "seed": "0"}, outcome(task(None))),  # 20 alphabets: config.gin
            ({"method": "none", "seed": "0"}, outcome(task(0.5))),
        ],
    )
    report = compose(read_study(tmp_path))
    leap, none = rows(report, "methods")
    assert leap[1] == "–"
    assert leap[4] == "1 of 1"
    assert none[1] == "50.0"
    assert as_html(report)


def test_sections_appear_with_their_folders(whole_study, tmp_path):
    page = (whole_study / "report" / "report.html").read_text()
    assert re.findall('<section id="([^"]*)"', page) == [
        "methods", "learning", "meta-training", "ablation", "jacobian", "paths", "rates", "record",
    ]  # fmt: skip
    write_table(tmp_path / "few", {"leap": [0.3]}, alphabets="5")
    assert [each.identifier for each in compose(read_study(tmp_path / "few")).sections] == [
        "methods",
        "record",
    ]
    assert "No finished cell has 20 pretraining alphabets" in findings(tmp_path / "few")


def test_error_against_alphabets(tmp_path):
    errors = {"1": 0.6, "5": 0.4, "20": 0.45}
    cells = [
        ({"method": "leap", "alphabets": alphabets, "seed": "0"}, outcome(task(error)))
        for alphabets, error in errors.items()
    ]
    none = ({"method": "none", "alphabets": "0", "seed": "0"}, outcome(task(0.8)))
    write_sweep(tmp_path / "table1", [*cells, none])
    report = compose(read_study(tmp_path))
    assert rows(report, "alphabets")[0] == ["Leap", "60.0", "40.0", "45.0"]
    assert rows(report, "alphabets")[1] == ["No pretraining", "80.0", "80.0", "80.0"]
    assert "Leap falls from 60.0 % to 45.0 %" in findings(tmp_path, "alphabets")
    assert "lower held-out error for 1 of 1 method." in findings(tmp_path, "alphabets")


def test_figures_of_the_smaller_sections(whole_study):
    report = compose(read_study(whole_study / "results"))
    assert "path length falls from 12.0 to 4.0" in said(report, "paths")
    assert "a factor of 3.00 (first/last); it did not rise in 2 of 2" in said(report, "paths")
    assert "0.5 at learning rate 0.1" in said(report, "jacobian")
    assert "1 of 2 paths ended in non-finite Jacobians" in said(report, "jacobian")
    assert "1 seed does not settle" in said(report, "ablation")
    assert "Every one of 1 method has 3 trials. Leap: outer rate 0.1." in said(report, "rates")
    assert "made 25,500 gradient steps" in said(report, "record")  # 17 cells of 3 × 500
    chosen = [row[1] for row in rows(report, "rates") if "chosen" in row[-1]]
    assert chosen == ["0.1"]


def test_the_page_needs_no_other_file_and_parses(whole_study):
    folder = whole_study / "report"
    content = (folder / "report.html").read_text()
    assert not re.search(r"https?:|@import|<link|<script|<img|<iframe|src=", content)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', content))
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", content))
    parser = Balanced()
    parser.feed(content)
    parser.close()
    assert parser.open == []
    assert len(parser.identifiers) == len(set(parser.identifiers))
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', content)
    assert {a or b for a, b in used} <= set(parser.identifiers)
    for svg in re.findall(r"<svg.*?</svg>", content, flags=re.DOTALL):
        xml.etree.ElementTree.fromstring(svg)
    figures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (folder / "report.md").read_text())
    assert len(figures) == len(re.findall("<svg", content)) == 7
    assert all((folder / figure).is_file() for figure in figures)


def test_the_same_results_give_the_same_bytes(whole_study, tmp_path):
    write_report(whole_study / "results", tmp_path)
    one, two = (
        {path.relative_to(each): path.read_bytes() for path in each.rglob("*") if path.is_file()}
        for each in (whole_study / "report", tmp_path)
    )
    assert one == two
    assert len(one) == 9


def test_commands_are_quoted_and_name_the_cell(tmp_path):
    write_sweep(tmp_path / "rates", [({"method": "leap", "outer": "0.1"}, None)])
    sweep = read_sweep(tmp_path / "rates")
    assert shlex.split(cell_command(sweep.cells[0], "rates")) == [
        "python",
        "bin/train.py",
        "--gin_file=gin_configs/omniglot/cell_cpu.gin",
        "--gin_param=MetaTrainer.learner = @Leap()",
        "--gin_param=judge.split = 'test'",
        "--output_dir=runs/rates/cells/leap-0.1",
    ]
    assert sweep_command(sweep) == (
        "python bin/sweep.py --gin_file=gin_configs/omniglot/rates_cpu.gin --output_dir=runs/rates"
    )


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ResultsError, match="Give --results"):
        read_study(tmp_path)
    (tmp_path / "rates").mkdir()
    with pytest.raises(ResultsError, match="no sweep.json"):
        read_study(tmp_path)
    (tmp_path / "rates" / "sweep.json").write_text("[")
    with pytest.raises(ResultsError, match="not JSON"):
        read_study(tmp_path)
    twice = {"method": "leap", "alphabets": "20", "seed": "0"}
    cells = [({**twice, "more": more}, outcome(task(0.5))) for more in "ab"]
    write_sweep(tmp_path / "twice" / "table1", cells)
    with pytest.raises(ResultsError, match="an axis that tells them apart"):
        compose(read_study(tmp_path / "twice"))


def test_methods_look_the_same_everywhere_and_unlike_each_other():
    assert in_order(["zeta", "none", "leap", "alpha"]) == ["leap", "none", "alpha", "zeta"]
    assert method_look("zeta", ["alpha"]) == method_look("zeta", ["alpha", "leap"])
    assert method_look("zeta", ["alpha"]).light != method_look("alpha", ["zeta"]).light
    assert len({look.light for look in METHODS.values()}) == len(METHODS)
    names = [name for name, *_ in colours().values()]
    assert len(names) == len(set(names)) == 10 + 3 + 4 + 4


def test_the_papers_table_is_whole():
    assert set(TABLE_1) <= set(METHODS)
    assert {len(errors) for errors in TABLE_1.values()} == {len(ALPHABETS)} == {16}
    at_twenty = {method: errors[20] for method, errors in TABLE_1.items()}
    assert at_twenty == {
        "leap": 2.4, "finetuning": 3.9, "reptile": 4.7, "fomaml": 9.4, "none": 16.6,
    }  # fmt: skip
