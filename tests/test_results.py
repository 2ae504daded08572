"""The figures in the README and in docs are those of the tables in docs/results."""

import csv
import gzip
import itertools
import json
import pathlib
import re

import gin
import numpy as np
import pytest

from leap_tf.experiments import config
from leap_tf.experiments.report.page import write_report
from leap_tf.experiments.report.studies import PATHS, path_curve
from leap_tf.experiments.run_tables import (
    Estimate,
    combine,
    difference,
    estimate,
    is_settled,
    read_results,
)

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
STUDIES = ("omniglot", "multi_cv", "defaults")
# Flennerhag et al. 2019, table 1, 30 alphabets.
PAPERS_TABLE_1 = {"leap": 1.8, "reptile": 4.6, "finetuning": 3.6, "none": 16.1}


@pytest.fixture(scope="module")
def studies():
    return {study: read_results(RESULTS / study) for study in STUDIES}


def table_under(document, words):
    """The first table of a page after some words of it."""
    text = (ROOT / document).read_text().split(words, 1)[1]
    return re.search(r"(?:^\|.*\n)+", text, re.M).group(0)


# Pages


def test_the_pages_are_those_of_the_tables(tmp_path):
    """Text and tables; pictures depend on the versions that draw them."""
    pages = write_report(tmp_path, results=RESULTS)
    assert [page.parent.name for page in pages] == sorted(STUDIES)
    for page in pages:
        committed = RESULTS / page.parent.name
        assert page.read_text() == (committed / "report.md").read_text()
        drawn = {path.name for path in (page.parent / "figures").iterdir()}
        assert drawn == {path.name for path in (committed / "figures").iterdir()}


def test_the_readme_shows_rows_of_the_omniglot_report():
    report = (RESULTS / "omniglot" / "report.md").read_text().splitlines()
    rows = table_under("README.md", "## Results").splitlines()
    assert len(rows) == 2 + 4
    assert set(rows) <= set(report)


def test_the_readme_quotes_errors_of_the_multi_cv_report():
    rows = rows_of("docs/results/multi_cv/report.md", "# ")
    error = {row[0]: row[1].split()[0] for row in rows}
    assert min(error, key=lambda method: float(error[method])) == "Leap"
    readme = (ROOT / "README.md").read_text()
    assert f"{error['Leap']} %, against {error['Finetuning']} % for joint training" in readme
    assert f"on the same data sets, {error['No pretraining']} %" in readme


def test_the_table_of_comparisons_is_of_its_file():
    with (RESULTS / "comparisons.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["error"]))
    table = rows_of("docs/results/README.md", "## Which method pays")
    for row, study in zip(table, ("sinusoids", "unicode", "employment"), strict=True):
        assert row[0].startswith(study) or study == "unicode"
        assert [cell for cell in row[1:] if cell] == [
            f"{row['method']} {float(row['error']):.3f} ± {float(row['interval']):.3f}"
            for row in rows
            if row["study"] == study
        ]


def test_the_few_shot_table_is_of_its_file():
    with (RESULTS / "few_shot.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["test_episodes"] for row in rows} == {"1000"}
    for cells, row in zip(rows_of("docs/few_shot.md", "## Measured results"), rows, strict=True):
        of_file = [row["episodes"], row["method"], row["queries"], row["steps"]]
        of_file += [
            f"{row[each]} ± {row[f'{each}_interval']}" for each in ("transductive", "inductive")
        ]
        of_file += [row["meta_steps"], row["gradient_steps"]]
        del cells[6]  # the published figure
        cells[0] = cells[0].replace("-way, ", "way_").replace("-shot", "shot")
        cells[1] = cells[1].lower().replace("-", "_")
        assert [cell.replace(",", "") for cell in cells] == of_file


def test_the_table_of_sinusoids_is_of_its_file():
    with (RESULTS / "sinusoids.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["test_tasks"] for row in rows} == {"1000"}
    for label, *cells in rows_of("docs/few_shot.md", "## Sinusoids"):
        of_method = [row for row in rows if row["method"] == METHODS_OF_SINUSOIDS[label]]
        assert [row["seed"] for row in of_method] == ["0", "1", "2"]
        for column, cell in zip(("error_after_1", "error_after_5", "error"), cells, strict=True):
            errors = [float(row[column]) for row in of_method]
            seeds = ", ".join(f"{error:.2f}" for error in errors)
            assert cell == f"{np.mean(errors):.2f} ({seeds})"


METHODS_OF_SINUSOIDS = {"MAML": "maml", "joint training": "joint", "no pretraining": "none"}


@pytest.mark.parametrize("sweep", ["omniglot_cpu", "unicode_cpu"])
def test_the_tables_of_the_default_configurations(studies, sweep):
    for label, initialization in (
        ("learned initialization", "learned initialization"),
        ("no pretraining", "no pretraining"),
    ):
        scores = studies["defaults"].scores(initialization)
        scores = scores[scores["sweep"] == sweep]
        row = f"| {label} |"
        for column in ("error", "final_training_error", "area"):
            mean, rest = estimate(scores, column).text().split(" ", 1)
            row += f" **{mean}** {rest} |"
        assert row in (RESULTS / "README.md").read_text()


@pytest.mark.parametrize("sweep", ["omniglot_cpu", "unicode_cpu"])
def test_learned_is_clearly_below_no_pretraining_at_every_seed(studies, sweep):
    results = studies["defaults"]
    learned, fresh = (results.scores(each) for each in ("learned initialization", "no pretraining"))
    for column in ("error", "area"):
        both = learned[column][learned["sweep"] == sweep], fresh[column][fresh["sweep"] == sweep]
        assert len(both[0]) == 3
        assert (both[0] < 0.75 * both[1]).all()
    tasks = results.tasks[results.tasks.index.str.startswith(f"{sweep}/")]
    assert tasks.groupby([tasks.index, "index"])["name"].nunique().eq(1).all()
    assert not tasks["diverged"].any()


# Findings: every number that a person wrote is computed here again.


def of_methods(scores, column, **axes):
    """From each method to its estimate, over the runs that have these values on their axes."""
    for axis, value in axes.items():
        scores = scores[scores[f"axis.{axis}"] == value]
    return {method: estimate(runs, column) for method, runs in scores.groupby("method")}


def plus_minus(found, digits=1):
    return found.text(digits, each=False)


def _jacobian_sentences():
    found = {}
    for line in (RESULTS / "jacobian_variants.jsonl").read_text().splitlines():
        each = json.loads(line)
        key = tuple(each[name] for name in ("filters", "weights", "scale", "statistics", "rate"))
        found[key] = each
    rho = {key: f"{each['rho']:.3g}" for key, each in found.items()}
    running, batch = (
        [rho[32, "pytorch", 1.0, statistics, rate] for rate in (0.01, 0.1, 0.5)]
        for statistics in ("running", "batch")
    )
    yield (
        f"ρ after 10 steps is {running[0]} at rate 0.01, {running[1]} at 0.1 and {running[2]} at "
        "0.5"
    )
    yield f"the same paths have {batch[0]}, {batch[1]} and {batch[2]}"
    keras, torch = ((32, weights, 1.0, "batch", 0.1) for weights in ("keras", "pytorch"))
    yield f"lower ρ from {rho[keras]} to {rho[torch]}"
    scaled = [rho[32, weights, 0.0039, "batch", 0.1] for weights in ("keras", "pytorch")]
    yield f"by 255 again lowers it to {scaled[0]} and {scaled[1]}"
    yield f"64 filters in place of 32 to {rho[64, 'pytorch', 1.0, 'batch', 0.1]}"
    first = [f"{found[each]['first order']:.3g}" for each in (keras, torch)]
    yield f"The first-order form of J changes little ({first[0]} and {first[1]})"
    for each in found.values():
        assert min(each[name] for name in ("entries", "Frobenius", "spectral")) > each["rho"]


def omniglot_sentences(results):
    scores, runs = results.scores(), results.runs
    sweep = {name: scores[scores["sweep"] == name] for name in set(scores["sweep"])}
    hours = runs["seconds"].sum() / 3600
    yield f"All {int(runs['finished'].sum())} training runs are finished: {hours:.1f} h"
    yield f"and {runs['gradient_steps'].sum():,.0f} gradient steps"
    assert runs["finished"].all()

    long, theirs = sweep["table1_long"], PAPERS_TABLE_1
    assert set(long["axis.alphabets"]) == {"30"}
    final, held_out, area, length = (
        {method: estimate(of, column).mean for method, of in long.groupby("method")}
        for column in ("final_training_error", "error", "area", "path_length")
    )
    named = {"Leap": "leap_0.2", "Reptile": "reptile_1.5", "finetuning": "finetuning_0.1",
             "no pretraining": "none"}  # fmt: skip
    for values in (final, held_out, area, length):
        yield ", ".join(f"{name} {values[method]:.1f}" for name, method in named.items())
    yield ", ".join(f"{theirs[m.partition('_')[0]]}" for m in named.values())
    tasks = results.tasks.loc["table1_long/0-30-leap_0.2"].set_index("name")["error"]
    yield f"Tengwar ({100 * tasks['Tengwar']:.0f} %) and Armenian ({100 * tasks['Armenian']:.0f} %)"
    paths = {
        method: path_curve(results, long[long["method"] == method], "val_path_length").iloc[:, 0]
        for method in ("leap_0.2", "reptile_1.5", "finetuning_0.1")
    }
    assert set(long["meta_steps"]) == {16, 1}
    yield "makes 16 meta-steps here"
    assert set(runs.loc[long.index, "steps"]) == {1000}
    yield "up to 1,000 gradient steps"
    yield "after 1,000 steps on a test alphabet"
    with (RESULTS / "table1_long_progress.csv").open() as file:
        trials = list(csv.DictReader(line for line in file if line[0] != "#"))
    rates = [row["method_outer_rate"].split("_") for row in trials]
    assert max(float(rate) for method, rate in rates if method == "reptile") == 1.5
    yield "Reptile's 1.5 is the highest that was tried"
    assert {rate for method, rate in rates if method == "finetuning"} == {"0.1"}
    yield "Finetuning was tried at 0.1 only"
    high, low = (
        next(row["training_error"] for row in trials if row["method_outer_rate"] == name)
        for name in ("reptile_1.5", "reptile_0.1")
    )
    yield (
        "outer rate 1.5, and 0.1 in the paper: on validation alphabets, after 4 meta-steps, "
        f"its training error is {float(high):.1f} % at 1.5 and {float(low):.1f} % at 0.1"
    )
    for path in paths.values():
        yield f"{path.iloc[0]:.0f} to {path.iloc[-1]:.0f}"

    error = of_methods(sweep["table1"], "error", alphabets="20")
    assert sorted(error, key=lambda m: error[m].mean) == [
        "finetuning", "leap", "reptile", "maml", "fomaml", "none",
    ]  # fmt: skip
    gap = difference(error["leap"], error["finetuning"])
    assert is_settled(gap)
    yield (
        f"Finetuning has the lowest held-out error, {plus_minus(error['finetuning'])} %. Leap is "
        f"next with {plus_minus(error['leap'])} %, {plus_minus(gap)} points more on the same "
        f"seeds; the three seeds settle that gap. No pretraining has {plus_minus(error['none'])} %"
    )
    for column in ("area", "final_training_error"):
        found = of_methods(sweep["table1"], column, alphabets="20")
        assert min(found, key=lambda m: found[m].mean) == "finetuning"
    steps = sweep["table1"].query("method != 'none' and method != 'maml'")["gradient_steps"]
    assert set(steps) == {20000}
    yield f"The budget is small: {20000:,} gradient steps of meta-training"
    assert set(runs.loc[runs["sweep"] == "table1", "steps"]) == {100}
    yield "evaluated after 100 steps"

    one, thirty = (of_methods(sweep["table1"], "error", alphabets=n) for n in ("1", "30"))
    ends = {m: f"{one[m].mean:.1f} % to {thirty[m].mean:.1f} %" for m in one}
    yield f"From 1 to 30 alphabets the error falls from {ends['leap']} for Leap"
    yield f"from {ends['reptile']} for Reptile, and from {ends['finetuning']} for finetuning"
    yield "Other numbers than 20 have one seed"

    twenty = sweep["table1"][sweep["table1"]["axis.alphabets"] == "20"]
    curves = {
        method: results.adaptation(of, "training_errors", 5).mean(axis=1)
        for method, of in twenty.groupby("method")
    }
    for step in (10, 50, 99):
        assert min(curves, key=lambda m: curves[m][step]) == "finetuning"
    at = [f"{100 * curves['finetuning'][step]:.0f} %" for step in (10, 50, 99)]
    yield f"throughout: {at[0]} after 10 steps, {at[1]} after 50 and {at[2]} at the end"

    falls = {}
    for method, of in twenty[twenty["meta_steps"] > 0].groupby("method"):
        losses = results.metric(of, "loss", 5).mean(axis=1)
        tenth = max(len(losses) // 10, 1)
        falls[method] = f"{losses[:tenth].mean():.2f} to {losses[-tenth:].mean():.2f}"
    yield (
        f"Leap {falls['leap']}, Reptile {falls['reptile']}, FOMAML {falls['fomaml']}, MAML "
        f"{falls['maml']}, finetuning {falls['finetuning']}"
    )

    ablation = {
        key: estimate(of, "error")
        for key, of in sweep["ablation"].groupby(["axis.distance", "axis.loss", "axis.stabilizer"])
    }
    full, energy = ablation["length", "loss", "stab"], ablation["energy", "loss", "stab"]
    assert min(ablation, key=lambda key: ablation[key].mean) == ("length", "loss", "stab")
    gap = difference(energy, full)
    assert not is_settled(gap)
    yield (
        f"has the lowest error, {plus_minus(full)} %. Path energy in place of length has "
        f"{plus_minus(energy)} %; two seeds do not settle that gap of {plus_minus(gap)} points"
    )

    def effect(switch, first, second):
        gaps = []
        for key, with_first in ablation.items():
            other = (*key[:switch], second, *key[switch + 1 :])
            if key[switch] == first and other in ablation:
                gaps.append(difference(ablation[other], with_first))
        return combine(np.mean, *gaps)

    stabilizer, distance, loss = (
        effect(2, "stab", "nostab"),
        effect(0, "length", "energy"),
        effect(1, "loss", "noloss"),
    )
    assert is_settled(stabilizer)
    assert not is_settled(distance)
    assert not is_settled(loss)
    yield f"Without the stabilizer the error is {plus_minus(stabilizer)} points higher"
    yield f"Path energy is {plus_minus(distance)} points worse than length"
    better = Estimate({seed: -value for seed, value in loss.values.items()})
    yield f"without the stabilizer is {plus_minus(better)} points better"
    by_loss = [
        difference(ablation[d, "noloss", "nostab"], ablation[d, "loss", "stab"]).mean
        for d in ("length", "energy")
    ]
    yield f"by {by_loss[0]:.1f} points (length) and {by_loss[1]:.1f} points (energy)"

    last = results.jacobian[results.jacobian["step"] == 20].groupby("learning_rate")["rho"].mean()
    small, middle, large = (f"{last[rate]:.3g}" for rate in (0.01, 0.1, 0.5))
    yield (
        f"After 20 steps ρ is on average {small} at learning rate 0.01, {middle} at 0.1 and "
        f"{large} at 0.5"
    )
    yield from _jacobian_sentences()

    paths = {}
    for method, of in runs[(runs["sweep"] == "paths") & (runs["method"] != "none")].groupby(
        "method"
    ):
        tables = [path_curve(results, of, metric).iloc[:, 0] for metric in PATHS.values()]
        paths[method] = [(table.iloc[0], table.iloc[-1], table) for table in tables]
        assert tables[0].index[-1] == 1200
    (first, last, table), energy, loss = paths["leap"]
    yield (
        f"is {last:.0f} long in place of {first:.0f} (a factor of {first / last:.2f}) after "
        f"{1200:,} meta-steps, its energy {energy[1]:.0f} in place of {energy[0]:.0f}, and it ends "
        f"at a loss of {loss[1]:.2f} in place of {loss[0]:.2f}. The length did not rise in "
        f"{(table.diff()[1:] <= 0).sum()} of {len(table) - 1} intervals"
    )
    yield f"Reptile comes to a length of {paths['reptile'][0][1]:.0f}"
    yield f"and a loss of {paths['reptile'][2][1]:.2f}"
    yield f"a low loss too ({paths['finetuning'][2][1]:.2f})"
    yield f"random weights ({paths['finetuning'][0][1]:.0f})"
    error, area = (of_methods(sweep["paths"], column) for column in ("error", "area"))
    e, a = ({m: f"{each.mean:.1f}" for m, each in of.items()} for of in (error, area))
    steps = sweep["paths"].query("method != 'none'")["gradient_steps"]
    assert set(steps) == {120000}
    yield f"one seed, and {120000:,} gradient steps of meta-training"
    yield (
        f"Leap's error on held-out drawings is {e['leap']} % (the paper's 1.8 % is very probably "
        f"on training images); Reptile has {e['reptile']} %, finetuning {e['finetuning']} % and no "
        f"pretraining {e['none']} %"
    )
    yield f"is gone ({error['leap'].mean - error['finetuning'].mean:.1f} points)"
    yield f"{a['leap']} for Leap, {a['reptile']} for Reptile and {a['finetuning']} for finetuning"
    readme = " ".join((RESULTS / "README.md").read_text().split())
    assert f"({e['leap']}, {e['reptile']} and {e['finetuning']} % error; {e['none']} %" in readme
    lengths = [paths[m][0][1] for m in ("leap", "reptile", "finetuning")] + [first]
    assert "{:.0f}, against {:.0f}, {:.0f} and {:.0f} (one seed)".format(*lengths) in readme

    best = chosen(sweep["rates"])
    trials = runs[runs["sweep"] == "rates"].groupby("method").size()
    assert set(trials) == {11}
    yield "Every one of the six methods has 11 trials"
    axes = {
        m: [row[f"axis.{axis}"] for axis in ("batch", "outer", "inner")] for m, row in best.items()
    }
    yield "Leap, meta-batch {}, outer rate {} and inner rate {}".format(*axes["leap"])
    for method, label in (("reptile", "Reptile"), ("fomaml", "FOMAML"), ("maml", "MAML")):
        yield "{} {}, {} and {}".format(label, *axes[method])
    yield f"finetuning inner rate {axes['finetuning'][2]} and for no pretraining {axes['none'][2]}"


def chosen(trials):
    """From each method to the trial with the smallest area, a mean over data sets if there are."""
    axes = [c for c in trials if c.startswith("axis.") and c != "axis.heldout"]
    found = {}
    for method, of in trials.groupby("method"):
        areas = of.groupby(axes)["area"].mean()
        found[method] = dict(zip(axes, areas.idxmin() if len(axes) > 1 else [areas.idxmin()]))
    return found


def multi_cv_sentences(results):
    scores, runs = results.scores(), results.runs
    yield f"Of {len(runs)} training runs {int(runs['finished'].sum())} are finished"
    table = scores[scores["sweep"] == "table3"]
    cells = dict(list(table.groupby(["axis.heldout", "method"])))
    methods = ["leap", "hat", "progressive", "finetuning", "none"]
    datasets = sorted({dataset for dataset, _ in cells})
    assert len(datasets) == 7
    values = {
        name: {key: estimate(of, name) for key, of in cells.items()} for name in ("error", "area")
    }
    means = {
        name: {m: combine(np.mean, *(of[d, m] for d in datasets)) for m in methods}
        for name, of in values.items()
    }
    error = {m: f"{each.mean:.1f} %" for m, each in means["error"].items()}
    area = {m: f"{each.mean:.1f}" for m, each in means["area"].items()}
    assert min(means["error"], key=lambda m: means["error"][m].mean) == "leap"
    yield (
        f"Its mean test error is {error['leap']} with both seeds; finetuning has "
        f"{error['finetuning']}, no pretraining {error['none']}, HAT {error['hat']}"
    )
    for method in ("finetuning", "none", "hat"):
        assert is_settled(difference(means["error"]["leap"], means["error"][method]))
    assert len(means["error"]["progressive"].values) == 1
    yield f"Progressive Nets, with one seed, have {error['progressive']}"
    yield f"level ({area['leap']} and {area['finetuning']})"
    assert not is_settled(difference(means["area"]["leap"], means["area"]["finetuning"]))
    gaps = {
        d: difference(values["area"][d, "leap"], values["area"][d, "finetuning"]).mean
        for d in datasets
    }
    assert {d for d in gaps if gaps[d] > 0} == {"fashion", "cifar100"}
    yield f"Fashion-MNIST by {gaps['fashion']:.1f} and on CIFAR-100 by {gaps['cifar100']:.1f}"
    ratios = {
        (d, m): combine(
            lambda pair: pair[0] / pair[1], values["area"][d, m], values["area"][d, "none"]
        ).mean
        for d in datasets
        for m in methods
    }
    others = sorted(ratios[d, "leap"] for d in datasets if d != "cifar100")
    yield (
        f"({ratios['cifar100', 'leap']:.2f} of the area without pretraining, {others[0]:.2f} to "
        f"{others[-1]:.2f} elsewhere)"
    )
    for dataset in ("svhn", "traffic"):
        assert ratios[dataset, "leap"] < 0.55
    leap = runs[(runs["sweep"] == "table3") & (runs["method"] == "leap")]
    yield f"{18000 // 6:,} gradient steps on each other data set"
    assert set(
        runs.loc[(runs["sweep"] == "table3") & (runs["method"] == "finetuning"), "gradient_steps"]
    ) == {18000}
    yield f"Leap's has moved {leap['meta_steps'].iloc[0]} times"
    progressive = combine(
        lambda pair: pair[0] / pair[1], means["area"]["progressive"], means["area"]["none"]
    )
    numbers = {m: cells["mnist", m]["parameters"].iloc[0] for m in ("leap", "progressive")}
    yield (
        f"({progressive.mean:.2f} of the area without pretraining) for "
        f"{numbers['progressive'] / numbers['leap']:.0f} times as many parameters"
    )

    for name, words in (
        ("area", "By area, pretraining is worse than none"),
        ("error", "By test error it is worse"),
    ):
        hurt = {}
        for dataset, method in itertools.product(datasets, methods[:-1]):
            gap = difference(values[name][dataset, method], values[name][dataset, "none"])
            if gap.mean > 0:
                hurt[dataset, method] = is_settled(gap)
        yield f"{words} in {len(hurt)} of {7 * 4} pairs"
        yield f"The seeds settle it in {sum(hurt.values())} of them"
        settled = {key for key in hurt if hurt[key]}
        assert {method for _, method in settled} == {"hat"}
        per_method = {m: sum(method == m for _, method in hurt) for m in methods[:-1]}
        if name == "area":
            assert per_method == {"hat": 7, "leap": 0, "progressive": 1, "finetuning": 0}
        else:
            assert per_method == {"hat": 7, "leap": 2, "progressive": 2, "finetuning": 3}
            assert {d for d, _ in settled} == {"notmnist", "fashion"}

    curves = {
        (d, m): results.adaptation(cells[d, m], "training_errors", 20).mean(axis=1)
        for d in datasets
        for m in methods
    }

    def lowest(step):
        return [min(methods, key=lambda m: curves[d, m][step]) for d in datasets]

    yield (
        f"After 60 steps Leap has the lowest training error on {lowest(60).count('leap')} of 7 "
        f"data sets and finetuning on {lowest(60).count('finetuning')}"
    )
    yield f"at the end Leap has it on {lowest(599).count('leap')}"
    assert {d for d, m in zip(datasets, lowest(599)) if m == "finetuning"} == {"mnist", "cifar100"}

    best = {m: axes["axis.inner"] for m, axes in chosen(scores[scores["sweep"] == "rates"]).items()}
    assert best["leap"] == best["progressive"] == best["none"]
    yield "Each method has 4 trials, on CIFAR-10"
    yield (
        f"inner rates {best['leap']} for Leap, Progressive Nets and no pretraining, "
        f"{best['finetuning']} for finetuning and {best['hat']}, the highest tried, for HAT"
    )
    hat = scores[(scores["method"] == "hat") & (scores["axis.inner"] == "0.1")]
    hat = hat[hat["axis.heldout"] == "traffic"].set_index("sweep")["error"]
    yield "annealed up to 400 in place of 40"
    yield (
        f"At inner rate 0.1 and traffic signs held out, the error is {hat['hat_scale_400']:.1f} %, "
        f"against {hat['rates']:.1f} % in the trials above"
    )


def default_sentences(results):
    for sweep, steps, what in (
        ("omniglot_cpu", 100, "an alphabet"),
        ("unicode_cpu", 50, "a script"),
    ):
        learned, fresh = (
            estimate(scores[scores["sweep"] == sweep], "error")
            for scores in map(results.scores, ("learned initialization", "no pretraining"))
        )
        assert set(results.runs.loc[results.runs["sweep"] == sweep, "steps"]) == {steps}
        yield (
            f"After {steps} steps on {what} that was never meta-trained on, the held-out error is "
            f"{plus_minus(learned)} % in place of {plus_minus(fresh)} %"
        )


# What the tables do not hold: the paper's own budget and figures, other measurements.
ELSEWHERE = (
    "up to 100 million", "100 to 1,000 times the paper's", "1/‖w‖²", "float64", "third for 0.5",
    "all at rate 0.1 with", "have 30 alphabets",
    "five validation tasks of 1,000", "After 1,000 steps on a held-out alphabet",
    "meta-batches of 2 tasks in place of 10", "CIFAR-100", "CIFAR-10", "With 50 steps",
    "20 tasks make a meta-step", "up to 5,000 in the paper", "theorem 1", "table1_long",
)  # fmt: skip


@pytest.mark.parametrize(
    ("study", "sentences"),
    [
        ("omniglot", omniglot_sentences),
        ("multi_cv", multi_cv_sentences),
        ("defaults", default_sentences),
    ],
)
def test_findings_are_those_of_the_tables(studies, study, sentences):
    text = (RESULTS / study / "findings.md").read_text()
    text = left = " ".join(re.sub("^## .*$", "", text, flags=re.M).split())
    for sentence in sentences(studies[study]):
        assert sentence in text
        left = left.replace(sentence, " ")
    for sentence in ELSEWHERE:
        left = left.replace(sentence, " ")
    assert not re.findall(r".{0,60}\d.{0,30}", left)  # numbers that nothing holds


def test_the_multi_cv_table_uses_the_rates_that_its_trials_chose(studies):
    scores = studies["multi_cv"].scores()
    best = chosen(scores[scores["sweep"] == "rates"])
    folder = ROOT / "gin_configs" / "multi_cv"
    try:
        config.read_configuration([folder / "table3_cpu.gin"])
        _, cells = config.configured_cells()
        assert len(cells) == 70
        for cell in cells:
            config.read_configuration([folder / "cell_cpu.gin"], cell.bindings)
            for schedule in ("inner", "evaluation"):
                rate = gin.query_parameter(f"{schedule}/CosineDecay.initial_learning_rate")
                assert str(rate) == best[cell.values["method"]]["axis.inner"]
    finally:
        gin.clear_config()


# Other measurements


@pytest.mark.parametrize("letter", "abcde")
def test_the_benchmark_table_is_that_of_its_output(letter):
    output = (RESULTS / "benchmarks.txt").read_text()
    (row,) = re.findall(
        rf"^\| \({letter}\) .*?\| ([\d.]+)", (RESULTS / "README.md").read_text(), re.M
    )
    if letter == "e":
        measured = max(float(value) for value in re.findall(r"for Leap ([\d.]+)", output))
    else:
        measured = float(re.search(rf"^\({letter}\).*?\s([\d.]+)   \(", output, re.M).group(1))
        measured *= 100 if letter == "c" else 1
    assert float(row) == pytest.approx(measured, abs=0.006 if letter in "abd" else 0.06)


def test_the_speeds_of_games_are_those_of_the_output():
    output = (RESULTS / "benchmarks.txt").read_text()
    contenders = ["raw", "visits", "visit", "groups", "driver", "ppo_atari_envpool", "ppo_atari"]
    columns = ["environment steps/s", "updates/s", "(a) of the raw emulator, wall", "CPU ms a step"]
    columns += ["(a) of the raw emulator, CPU"]
    rows = rows_of("docs/atari.md", "## Speed")
    for contender, row in zip(contenders, rows, strict=True):
        for column, cell in zip(columns, row[1:], strict=True):
            found = re.search(rf"^{re.escape(column)}, {contender} +([\d.]+)", output, re.M)
            if contender != "raw" or found:  # the emulator has no updates, nor a ratio to itself
                shown = cell.split()[0].replace(",", "")
                last_digit = 10.0 ** -len(shown.partition(".")[2])
                assert float(shown) == pytest.approx(float(found[1]), abs=0.501 * last_digit)


def test_the_times_of_meta_gradients_are_those_of_the_output():
    output = (RESULTS / "benchmarks.txt").read_text().split("second_order.py --rounds 30", 1)[1]
    contenders = ["leap_tf", "torch.func", "TorchOpt", "TorchOpt, two tasks at a time"]
    pattern = r"^  {} +([\d.]+ ms a task \(.*?\)), ratio ([\d.]+);"
    rows = rows_of("docs/few_shot.md", "## Time of a meta-gradient")
    for contender, row in zip(contenders, rows, strict=True):
        five, twenty, *_ = re.findall(pattern.format(re.escape(contender)), output, re.M)
        assert row[1:] == [each.replace(" ms a task", "") for each in (*five, *twenty)]


def rows_of(document, heading):
    """The cells of the first table under a heading of a page, without its two header lines."""
    lines = table_under(document, heading).splitlines()[2:]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def measured(name):
    with gzip.open(RESULTS / "atari" / "measurements.jsonl.gz", "rt") as lines:
        return [line for line in map(json.loads, lines) if line["measurement"] == name]


def factor(line):
    ratio = line["final_reward"] / line["random_final_reward"]
    assert ratio == pytest.approx(line["factor"], abs=0.01)
    return f"{ratio:.2f}"


def test_the_single_agents_of_atari():
    lines = measured("single_task")
    assert [line["seed"] for line in lines] == [101, 102, 103]
    assert rows_of("docs/atari.md", "## Does an agent learn?") == [
        ["agent", *(f"{line['final_reward']:.1f}" for line in lines)],
        ["random play", *(f"{line['random_final_reward']:.1f}" for line in lines)],
        ["factor", *(factor(line) for line in lines)],
    ]


def test_the_screening_of_atari_games():
    factors = {
        (line["game"], str(line["seed"])): factor(line)
        for line in measured("screening")
        if not line["bindings"] and line["factor"]
    }
    rows = rows_of("docs/results/README.md", "### Screening and settings")
    assert len(rows) == 10
    for game, _, *figures, _ in rows:
        assert figures == [factors[game, seed] for seed in ("201", "202")]


def test_the_screening_of_flavours():
    lines = measured("flavour_screening")
    assert {(line["seed"], line["updates"]) for line in lines} == {(301, 600)}
    rows = rows_of("docs/atari.md", "Screening of flavours with one seed")
    assert rows == [["factor over random play", *(factor(line) for line in lines)]]


def test_all_meta_steps_over_flavours_reached_their_bounds():
    norms = {"leap_0": [], "reptile_0": []}
    for line in measured("flavours_metrics"):
        norms[line["run"]].append(line["meta_gradient_norm"])
    assert all(len(of) == 15 for of in norms.values())
    assert min(norms["leap_0"]) > 0.0449  # global_clipnorm is 0.045
    least, most = min(norms["reptile_0"]), max(norms["reptile_0"])
    sentence = f"displacements of {least:.2f} to {most:.2f} were multiplied by "
    sentence += f"{1.1 / most:.1f} to {1.1 / least:.1f}"
    assert sentence in " ".join((ROOT / "docs" / "atari.md").read_text().split())


def test_the_sizes_of_meta_gradients():
    sizes = {
        (line["distance"], line["include_loss"], line["game"]): line["meta_gradient_norm"]
        for line in measured("meta_gradient_sizes")
    }
    rows = rows_of("docs/results/README.md", "The meta-gradient's norm, per segment")
    settings = [("energy", True), ("length", True), ("length", False)]
    games = ["ms_pacman", "gopher", "phoenix", "assault"]
    assert [row[1:] for row in rows] == [
        [f"{sizes[*setting, game]:.4f}" for game in games] for setting in settings
    ]


def areas(run, kind, game):
    """Areas under the reward of the agents of a run, in the order of their starts."""
    with gzip.open(RESULTS / "atari" / "agents.jsonl.gz", "rt") as lines:
        found = [json.loads(line) for line in lines]
    wanted = {"run": run, "kind": kind, "game": game}
    return [1e3 * np.mean(each["rewards"]) for each in found if wanted.items() <= each.items()]


def test_the_gains_over_fresh_agents_with_other_value_heads():
    fresh = {line["game"]: line for line in measured("fresh_value_gain_1")}
    percent, ahead = {}, 0
    for game in ("crazy_climber", "alien", "krull", "ms_pacman"):
        learned = areas("leap_0", "learned", game) + areas("leap_1", "learned", game)
        percent[game] = round(100 * (np.mean(learned) / fresh[game]["mean"] - 1))
        if game != "ms_pacman":
            controls = 2 * fresh[game]["values"]  # once for each of the two encoders
            ahead += sum(a > b for a, b in zip(learned, controls, strict=True))
    assert percent == {"crazy_climber": 7, "alien": 5, "krull": 0, "ms_pacman": 11}
    assert ahead == 19
    page = (RESULTS / "README.md").read_text()
    assert "at +7 %, +5 %, 0 % and +11 %, and ahead on 19 of 30" in page


def test_the_gains_of_each_atari_encoder():
    percent, ahead = {}, {}
    for game in ("crazy_climber", "alien", "krull", "ms_pacman"):
        fresh = areas("leap_0", "fresh", game)
        for run in (0, 1):
            learned = areas(f"leap_{run}", "learned", game)
            percent[game, run] = round(100 * (sum(learned) / sum(fresh) - 1))
            ahead[game, run] = sum(a > b for a, b in zip(learned, fresh, strict=True))
    assert ahead["crazy_climber", 0] == ahead["crazy_climber", 1] == 5
    held_out = ("crazy_climber", "alien", "krull")
    assert [sum(ahead[game, run] for game in held_out) for run in (0, 1)] == [13, 10]
    assert [percent[game, 0] for game in ("alien", "krull", "ms_pacman")] == [6, 9, -2]
    assert [percent[game, 1] for game in ("alien", "krull", "ms_pacman")] == [0, 0, 2]
    learned = areas("leap_0", "learned", "crazy_climber") + areas(
        "leap_1", "learned", "crazy_climber"
    )
    fresh = areas("leap_0", "fresh", "crazy_climber")
    assert round(100 * (np.mean(learned) / np.mean(fresh) - 1)) == 15
