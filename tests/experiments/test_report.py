"""The report, from small sweeps whose figures can be computed by hand."""

import json
import math

import pandas as pd
import pytest

from leap_tf.experiments import run_tables
from leap_tf.experiments.report import figures, studies
from leap_tf.experiments.report.page import write_report
from leap_tf.experiments.run_tables import (
    Estimate,
    ResultsError,
    combine,
    difference,
    estimate,
    is_settled,
    read_results,
)
from tests.result_folders import CONFIG, outcome, task, write_sweep


def read(folder, *runs):
    """The tables that runs are collected into, read again."""
    folder.mkdir(exist_ok=True)
    for name, content in run_tables.collect(runs).items():
        (folder / name).write_bytes(content)
    return read_results(folder)


def page(tmp_path, study="mine"):
    """The page on tmp_path/runs, as text."""
    (path,) = write_report(tmp_path / "report", runs=[tmp_path / "runs"], study=study)
    return path.read_text()


def rows(text, heading):
    """The cells of the first table under a heading, header included, without bold type."""
    lines = text.split(f"## {heading}\n", 1)[1].split("\n| ", 1)[1].split("\n\n", 1)[0]
    cells = [line.strip("|").split("|") for line in f"| {lines}".splitlines()]
    texts = [[cell.replace("**", "").strip() for cell in row] for row in cells]
    return [row for row in texts if not row[0].startswith("---")]


# Statistics


def test_estimates_over_seeds():
    several = Estimate({"0": 1.0, "1": 2.0, "2": 6.0})
    assert several.mean == 3.0
    assert several.standard_error == pytest.approx(math.sqrt(7 / 3))  # s² = (4 + 1 + 9)/2
    assert several.text() == "3.0 ± 1.5 (1.0, 2.0, 6.0)"
    assert several.text(0, each=False) == "3 ± 2"
    assert Estimate({"0": 1.0}).text() == "1.0 (one seed)"
    assert Estimate({}).text() == "–"
    assert difference(Estimate({"0": 5.0, "1": 7.0}), Estimate({"1": 4.0, "2": 9.0})).values == {
        "1": 3.0
    }
    assert combine(sum, several, Estimate({"0": 1.0, "2": 1.0})).values == {"0": 2.0, "2": 7.0}


@pytest.mark.parametrize(
    ("values", "settled"),
    [
        ([4.0, 3.0], False),  # 3.5 ± 0.5; of two seeds the interval reaches 12.7 standard errors
        ([4.0, 3.5], True),  # 3.75 ± 0.25
        ([1.0, 2.0, 3.0], False),  # 2 ± 0.58; of three seeds it reaches 4.3
        ([2.0, 3.0, 4.0], True),
        ([-2.0, -3.0, -4.0], True),
        ([4.0, -3.0], False),
        ([4.0], False),
        ([0.0, 0.0], False),
    ],
)
def test_a_gap_is_settled_if_its_confidence_interval_leaves_out_zero(values, settled):
    assert is_settled(Estimate(dict(enumerate(values)))) == settled


# Tables


def test_scores_leave_diverged_tasks_out_and_count_them(tmp_path):
    write_sweep(
        tmp_path / "s",
        [
            ({"method": "leap", "seed": "0"}, outcome(task(0.2, steps=1), task(0.4))),
            ({"method": "leap", "seed": "1"}, outcome(task(0.6, steps=2), task(None))),
            ({"method": "leap", "seed": "2"}, outcome(task(None))),
            ({"method": "leap", "seed": "3"}, None),
        ],
    )
    scores = read(tmp_path / "tables", tmp_path / "s").scores()
    assert estimate(scores, "error").values == pytest.approx({"0": 30.0, "1": 60.0})
    assert estimate(scores, "steps").values == {"0": 1.0, "1": 2.0}
    assert estimate(scores, "capped").values == {"0": 2.0, "1": 2.0}  # (1 + 3)/2 and 2
    assert scores["diverged"].tolist() == [0, 1, 1]
    assert scores["reached"].tolist() == [1, 1, 0]
    assert scores["gradient_steps"].tolist() == [1500] * 3


def test_the_training_error_at_the_end_is_in_per_cent(tmp_path):
    judged = outcome(task(0.2, final_training_error=0.1))
    write_sweep(tmp_path / "s", [({"method": "leap", "seed": "0"}, judged)])
    scores = read(tmp_path / "tables", tmp_path / "s").scores()
    assert scores["final_training_error"].tolist() == pytest.approx([10.0])


def test_curves_of_whole_tasks(tmp_path):
    judged = outcome(task(0.1, curve=(1.0, 0.0)), task(None), task(0.1, curve=(0.0, 1.0, 1.0)))
    cells = [({"method": "leap", "seed": seed}, judged) for seed in "01"]
    write_sweep(tmp_path / "s", cells)
    results = read(tmp_path / "tables", tmp_path / "s")
    curve = results.adaptation(results.scores(), "training_errors", 1)
    assert curve["s/leap-0"].tolist() == [0.5, 0.5]
    metric = results.metric(results.runs, "loss", 2, "gradient_steps")
    assert metric["s/leap-1"].tolist() == [3.0, 2.25, 1.25]  # of 3, 1.5 and 1
    assert metric.index.tolist() == [500, 1000, 1500]
    assert results.metric(results.runs, "nothing").empty


def test_methods_and_seeds_of_single_runs_come_from_their_configuration(tmp_path):
    write_sweep(tmp_path / "s", [({"a": "1"}, outcome(task(0.5)))])
    runs = tmp_path / "group"
    for name, learner in (("x", "@JointTraining()"), ("y", "@scope/Leap()")):
        run = runs / name
        run.parent.mkdir(exist_ok=True)
        (tmp_path / "s" / "cells" / "1").rename(run) if name == "x" else run.mkdir()
        (run / "config.gin").write_text(f"{CONFIG}MetaTrainer.learner = {learner}\n")
    table = read(tmp_path / "tables", runs).runs
    assert table.index.tolist() == ["group/x", "group/y"]
    assert table["method"].tolist() == ["finetuning", "leap"]
    assert table["seed"].tolist() == ["7", "7"]
    assert table["finished"].tolist() == [1, 0]


def test_single_runs_of_one_method_and_seed_are_told_apart_by_their_folders(tmp_path):
    for name, rate in (("x", 0.1), ("y", 0.2)):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        text = "SEED = 3\nstudy.seed = %SEED\nMetaTrainer.learner = @learners.Reptile()\n"
        (run / "config.gin").write_text(f"{text}meta/SGD.learning_rate = {rate}\n")
    table = read(tmp_path / "tables", tmp_path / "runs").runs
    assert table["axis.run"].tolist() == ["x", "y"]
    assert table["method"].tolist() == ["reptile", "reptile"]
    assert table["seed"].tolist() == ["3", "3"]


def test_the_last_line_of_metrics_may_be_cut_short(tmp_path):
    write_sweep(tmp_path / "s", [({"method": "leap", "seed": "0"}, outcome(task(0.5)))])
    file = next(tmp_path.rglob("metrics.jsonl"))
    file.write_text(file.read_text() + '{"meta_step": 4, "secon')
    assert read(tmp_path / "tables", tmp_path / "s").runs["meta_steps"].tolist() == [3]


# Pages


def test_a_page_on_a_sweep_of_any_axes(tmp_path):
    write_sweep(
        tmp_path / "runs",
        [
            ({"rate": "0.1", "seed": "0"}, outcome(task(0.2), task(None))),
            ({"rate": "0.1", "seed": "1"}, outcome(task(0.4))),
            ({"rate": "0.3", "seed": "0"}, outcome(task(0.1, steps=2))),
            ({"rate": "0.3", "seed": "1"}, None),
        ],
    )
    text = page(tmp_path)
    assert text.startswith("# mine\n")
    assert "Not finished: 1 of 4 runs: 0.3-1." in text
    header, *table = rows(text, "runs")
    assert header == [
        "method", "held-out error, %", "training error at the end, %",
        "area under training error", "steps to 10 % training error", "diverged tasks",
    ]  # fmt: skip
    assert table == [
        ["Leap · rate 0.1", "30.0 ± 10.0 (20.0, 40.0)", "58.3 ± 0.0 (58.3, 58.3)",
         "50.0 ± 0.0 (50.0, 50.0)", "– (0 of 3 tasks)", "1 of 3"],
        ["Leap · rate 0.3", "10.0 (one seed)", "58.3 (one seed)", "50.0 (one seed)",
         "2 (1 of 1 tasks)", "0 of 1"],
    ]  # fmt: skip
    assert "| Leap · rate 0.3 | **10.0** (one seed) |" in text
    assert (tmp_path / "report" / "figures" / "runs.png").read_bytes()[:4] == b"\x89PNG"
    assert rows(text, "Runs")[1] == ["runs", "3 of 4", "0, 1", "18 s", "4,500"]


def test_no_pretraining_is_a_row_if_it_was_evaluated(tmp_path):
    write_sweep(tmp_path / "runs", [({"seed": seed}, outcome(task(0.2))) for seed in "01"])
    for file in tmp_path.rglob("evaluation.json"):
        record = json.loads(file.read_text())
        record["results"]["no pretraining"] = outcome(task(0.8))
        file.write_text(json.dumps(record))
    assert [row[:2] for row in rows(page(tmp_path), "runs")[1:]] == [
        ["Leap", "20.0 ± 0.0 (20.0, 20.0)"],
        ["No pretraining", "80.0 ± 0.0 (80.0, 80.0)"],
    ]


def test_a_method_whose_tasks_all_diverged_has_no_error_and_is_shown(tmp_path):
    cells = [("leap", outcome(task(None))), ("none", outcome(task(0.5)))]
    write_sweep(tmp_path / "runs", [({"method": m, "seed": "0"}, judged) for m, judged in cells])
    table = rows(page(tmp_path), "runs")
    assert [row[:2] for row in table[1:]] == [["Leap", "–"], ["No pretraining", "50.0 (one seed)"]]
    assert table[1][-1] == "1 of 1"


def test_the_omniglot_study(tmp_path):
    errors = {("leap", "1"): 0.6, ("leap", "20"): 0.4, ("none", "0"): 0.8}
    write_sweep(
        tmp_path / "runs" / "table1",
        [
            ({"method": method, "alphabets": alphabets, "seed": "0"}, outcome(task(error)))
            for (method, alphabets), error in errors.items()
        ],
    )
    write_sweep(
        tmp_path / "runs" / "ablation",
        [
            ({"distance": d, "loss": "loss", "stabilizer": s, "seed": "0"}, outcome(task(0.5)))
            for d in ("length", "energy")
            for s in ("stab", "nostab")
        ],
    )
    paths = [({"method": method, "seed": "0"}, outcome(task(0.3))) for method in ("leap", "none")]
    write_sweep(tmp_path / "runs" / "paths", paths)
    fresh = tmp_path / "runs" / "paths" / "cells" / "none-0" / "metrics.jsonl"
    fresh.write_text(fresh.read_text().splitlines()[0].replace("12.0", "24.0") + "\n")
    write_sweep(
        tmp_path / "runs" / "rates",
        [
            ({"method": "leap", "outer": outer}, outcome(task(0.3, area=area)))
            for outer, area in (("0.05", 40.0), ("0.1", 30.0), ("0.2", 35.0))
        ],
    )
    folder = tmp_path / "runs" / "jacobian"
    folder.mkdir()
    for number, rho in enumerate(([0.0, 0.5], [0.0, 0.7])):
        record = {"learning_rate": 0.1, "task": number, "steps": [0, 5], "rho": rho,
                  "layer": "conv1", "parameters": 288, "matrix_bytes": 2**20,
                  "seconds": 30.0}  # fmt: skip
        (folder / f"learning_rate_0.1_task_{number}.json").write_text(json.dumps(record))
    text = page(tmp_path, "omniglot")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        "Methods compared", "Error against pretraining alphabets", "Learning on held-out tasks",
        "Meta-training", "Ablation of Leap", "How far is the Jacobian from the identity?",
        "Theorem 1: do the paths get shorter?", "Learning-rate trials", "Runs",
    ]  # fmt: skip
    assert [(row[0], row[1], row[-1]) for row in rows(text, "Methods compared")[1:]] == [
        ("Leap", "40.0 (one seed)", "2.4"),
        ("No pretraining", "80.0 (one seed)", "16.6"),
    ]
    assert rows(text, "Error against pretraining alphabets") == [
        ["method", "1 alphabet", "20 alphabets"],
        ["Leap", "60.0 (one seed)", "40.0 (one seed)"],
        ["No pretraining", "–", "80.0 (one seed)"],
    ]
    assert len(rows(text, "Ablation of Leap")) == 1 + 4
    assert rows(text, "How far is the Jacobian from the identity?")[1][1:] == ["0 ± 0", "0.6 ± 0.1"]
    # 24 before meta-training, then 12, 6 and 4.
    assert rows(text, "Theorem 1: do the paths get shorter?")[1] == [
        "Leap", "6.00× (24 → 4)", "3.00× (6 → 2)", "3.00× (1 → 0.333)", "3 of 3",
    ]  # fmt: skip
    assert [row[1] for row in rows(text, "Learning-rate trials") if row[-1] == "✓ chosen"] == [
        "0.1"
    ]


def test_table_1_by_the_papers_protocol(tmp_path):
    errors = {
        ("leap_0.2", "30", "0"): 0.2, ("leap_0.2", "30", "1"): 0.1, ("reptile_1.5", "30", "0"): 0.3,
        ("reptile_0.1", "30", "0"): 0.4, ("none", "30", "0"): 0.5, ("leap_0.2", "1", "0"): 0.6,
    }  # fmt: skip
    write_sweep(
        tmp_path / "runs" / "table1_long",
        [
            (
                {"seed": seed, "alphabets": alphabets, "method": method},
                outcome(task(error, curve=(error, error), path_length=100 * error)),
            )
            for (method, alphabets, seed), error in errors.items()
        ],
        meta_steps=2,
    )
    text = page(tmp_path, "omniglot")
    titles = ["The paper's table 1, by its protocol", "Theorem 1 by the paper's protocol", "Runs"]
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == titles
    assert rows(text, titles[0])[1:] == [
        ["Leap, 0.2", "15.0 ± 5.0 (20.0, 10.0)", "1.8", "15.0 ± 5.0 (20.0, 10.0)",
         "50.0 ± 0.0 (50.0, 50.0)", "15.0 ± 5.0 (20.0, 10.0)", "1,000", "4 s"],
        ["Reptile, 0.1", "40.0 (one seed)", "4.6", "40.0 (one seed)", "50.0 (one seed)",
         "40.0 (one seed)", "1,000", "4 s"],
        ["Reptile, 1.5", "30.0 (one seed)", "4.6", "30.0 (one seed)", "50.0 (one seed)",
         "30.0 (one seed)", "1,000", "4 s"],
        ["No pretraining", "50.0 (one seed)", "16.1", "50.0 (one seed)", "50.0 (one seed)",
         "50.0 (one seed)", "1,000", "4 s"],
    ]  # fmt: skip
    second = text.split("30 pretraining alphabets", 1)[1]
    assert "| Leap, 0.2 | 60.0 (one seed) | 7.8 | 60.0" in second.split("1 pretraining alph", 1)[0]
    # Seed 1 has no run of no pretraining, so Leap's paths begin with meta-step 1.
    assert rows(text, titles[1])[1:] == [
        ["Leap, 0.2", "2.00× (12 → 6)", "2.00× (6 → 3)", "2.00× (1 → 0.5)", "2 of 2"],
        ["Reptile, 0.1", "2.00× (12 → 6)", "2.00× (6 → 3)", "2.00× (1 → 0.5)", "2 of 2"],
        ["Reptile, 1.5", "2.00× (12 → 6)", "2.00× (6 → 3)", "2.00× (1 → 0.5)", "2 of 2"],
    ]


def test_the_multi_cv_study(tmp_path):
    figures = {
        ("leap", "mnist"): [(0.02, 10.0), (0.04, 14.0)],
        ("leap", "cifar10"): [(0.40, 50.0), (0.42, 54.0)],
        ("hat", "mnist"): [(0.06, 40.0), (0.08, 44.2)],
        ("hat", "cifar10"): [(0.50, 56.0), None],
        ("none", "mnist"): [(0.06, 20.0), (0.06, 28.0)],
        ("none", "cifar10"): [(0.52, 60.0), (0.56, 60.0)],
    }
    cells = [
        (
            {"seed": str(seed), "method": method, "heldout": dataset},
            pair and outcome(task(pair[0], area=pair[1], parameters=1234)),
        )
        for (method, dataset), seeds in figures.items()
        for seed, pair in enumerate(seeds)
    ]
    write_sweep(tmp_path / "runs" / "table3", cells, study="multi_cv")
    trials = {"0.1": (20.0, 60.0), "0.2": (30.0, 40.0), "0.3": (10.0, None)}
    write_sweep(
        tmp_path / "runs" / "rates",
        [
            ({"seed": "9", "method": "leap", "heldout": dataset, "inner": inner},
             outcome(task(None if areas[place] is None else 0.5, area=areas[place])))
            for place, dataset in enumerate(("mnist", "cifar10"))
            for inner, areas in trials.items()
        ],
    )  # fmt: skip
    text = page(tmp_path, "multi_cv")
    means = {row[0]: row[1:] for row in rows(text, "Which pretraining helps?")}
    assert means["Leap"][0] == "22.0 ± 1.0 (21.0, 23.0)"
    assert means["Leap"][2] == "32.0 ± 2.0 (30.0, 34.0)"
    assert means["HAT"][0] == "28.0 (one seed)"  # of seed 0, which has both data sets
    assert means["No pretraining"][2] == "42.0 ± 2.0 (40.0, 44.0)"
    assert means["Leap"][-1] == "10.9 / 5.5 / 9.1"  # the paper's, of MNIST and CIFAR-10
    gaps = text.split("| Leap minus |")[1].splitlines()[2:4]
    assert gaps[0].startswith("| HAT | −18.0 (one seed), not settled | 2 of 2 data sets |")
    assert gaps[1].startswith("| No pretraining | −10.0 ± 0.0, settled | 2 of 2 data sets |")
    of_data_sets = rows(text, "Data set by data set: does any pretraining hurt?")
    assert [row[:2] for row in of_data_sets[1:3]] == [
        ["MNIST (10 images)", "Leap"],
        ["MNIST (10 images)", "HAT"],
    ]
    trials = rows(text, "Learning-rate trials")
    # 0.3 diverged on CIFAR-10, and cannot be chosen.
    assert [row[1:5] + row[-1:] for row in trials[1:]] == [
        ["0.1", "20.0", "60.0", "50.0", ""],
        ["0.2", "30.0", "40.0", "50.0", "✓ chosen"],
        ["0.3", "10.0", "–", "–", ""],
    ]


def test_sweeps_that_do_not_fit_a_layout_get_the_page_of_any_sweep(tmp_path):
    for name in ("table1", "ablation"):
        write_sweep(tmp_path / "runs" / name, [({"method": "leap"}, outcome(task(0.5)))])
        file = tmp_path / "runs" / name / "cells" / "leap" / "config.gin"
        file.write_text("alphabet_splits.train_alphabets = 5\n")
    text = page(tmp_path, "omniglot")
    assert rows(text, "table1")[1][1] == rows(text, "ablation")[1][1] == "50.0 (one seed)"


def test_findings_stand_under_the_titles_of_their_sections(tmp_path):
    write_sweep(tmp_path / "runs", [({"method": "leap"}, outcome(task(0.5)))])
    page(tmp_path)
    findings = tmp_path / "report" / "findings.md"
    findings.write_text("What it is.\n\n## runs\n\nLeap has 50 %.\n")
    (path,) = write_report(tmp_path / "report", results=tmp_path / "report", study="mine")
    text = path.read_text()
    assert "# mine\n\nWhat it is.\n\n## runs\n\nLeap has 50 %.\n\n|" in text
    findings.write_text("## Elsewhere\n\nNothing.\n")
    with pytest.raises(ResultsError, match="no section's: Elsewhere"):
        write_report(tmp_path / "report", results=tmp_path / "report")


def test_the_same_results_give_the_same_bytes(tmp_path):
    write_sweep(tmp_path / "runs", [({"method": "leap"}, outcome(task(0.5)))])
    page(tmp_path)
    write_report(tmp_path / "again", results=tmp_path / "report", study="mine")
    written = [path for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert len(written) == 2
    for path in written:
        former = tmp_path / "report" / path.relative_to(tmp_path / "again")
        assert path.read_bytes() == former.read_bytes()
    assert [each.name for each in sorted((tmp_path / "report").glob("*.gz"))] == [
        "curves.csv.gz",
        "runs.csv.gz",
        "tasks.csv.gz",
    ]


def test_a_folder_of_studies_gives_a_page_for_each(tmp_path):
    for name in "ab":
        write_sweep(tmp_path / "runs" / name, [({"method": "leap"}, outcome(task(0.5)))])
        write_report(tmp_path / "tables" / name, runs=[tmp_path / "runs" / name])
    pages = write_report(tmp_path / "pages", results=tmp_path / "tables")
    assert [path.read_text().splitlines()[0] for path in pages] == ["# a", "# b"]


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ValueError, match="Pass either"):
        write_report(tmp_path)
    with pytest.raises(ResultsError, match="Pass --results a folder of tables"):
        write_report(tmp_path, results=tmp_path)
    with pytest.raises(ResultsError, match="neither a sweep.json nor a run's config.gin"):
        run_tables.collect([tmp_path])
    cells = [({"method": "leap", "more": more}, outcome(task(0.5))) for more in "ab"]
    write_sweep(tmp_path / "runs", cells)
    with pytest.raises(ResultsError, match="Two runs are runs/leap-"):
        run_tables.collect([tmp_path / "runs", tmp_path / "runs"])
    tables = run_tables.collect([tmp_path / "runs"])
    (tmp_path / "tables").mkdir()
    for name in ("runs.csv.gz", "curves.csv.gz"):
        (tmp_path / "tables" / name).write_bytes(tables[name])
    with pytest.raises(ResultsError, match="has no tasks.csv.gz"):
        read_results(tmp_path / "tables")
    for content in (tables["runs.csv.gz"], b"run,name\n", tables["tasks.csv.gz"][:40]):
        (tmp_path / "tables" / "tasks.csv.gz").write_bytes(content)
        with pytest.raises(
            ResultsError, match="tasks.csv.gz does not have the form that this project writes"
        ):
            read_results(tmp_path / "tables")
    index = tmp_path / "runs" / "sweep.json"
    entries = json.loads(index.read_text())
    for entry in entries:
        entry["values"] = {"method": "leap"}
    index.write_text(json.dumps(entries))
    with pytest.raises(ResultsError, match="Add an axis to the sweep that tells them apart"):
        page(tmp_path)
    for content in ("[", '[{"name": "a"}]', "[1]"):
        index.write_text(content)
        with pytest.raises(
            ResultsError, match="sweep.json does not have the form that this project writes"
        ):
            page(tmp_path)


def test_methods_look_the_same_everywhere_and_unlike_each_other():
    assert figures.in_order(["zeta", "none", "leap", "alpha"]) == ["leap", "none", "alpha", "zeta"]
    assert len({each.colour for each in figures.METHODS.values()}) == len(figures.METHODS)
    assert figures.look("zeta", 0).colour != figures.look("alpha", 1).colour


def test_the_papers_tables_are_whole():
    first = pd.read_csv(studies.PAPER / "table1.csv")
    assert first.groupby("method").size().to_dict() == dict.fromkeys(
        ["finetuning", "fomaml", "leap", "none", "reptile"], 16
    )
    at_twenty = first[first["alphabets"] == 20].set_index("method")["error"].to_dict()
    assert at_twenty == {
        "leap": 2.4,
        "finetuning": 3.9,
        "reptile": 4.7,
        "fomaml": 9.4,
        "none": 16.6,
    }
    third = pd.read_csv(studies.PAPER / "table3.csv")
    assert third.groupby("heldout").size().to_dict() == dict.fromkeys(studies.DATASETS, 5)
    # Columns added up from the paper itself.
    sums = third[third["method"] == "leap"].sum(numeric_only=True)
    assert sums.tolist() == pytest.approx([118.4, 51.8, 91.5])
