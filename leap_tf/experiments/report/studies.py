"""The tables and figures of a page: of the Omniglot study, the Multi-CV study, any other sweep."""

import dataclasses
import itertools
import pathlib
import re
import statistics
from collections.abc import Mapping

import pandas as pd

from leap_tf.experiments.report import figures
from leap_tf.experiments.report.figures import Look, in_order, look
from leap_tf.experiments.run_tables import (
    FRESH,
    LEARNED,
    Estimate,
    Results,
    combine,
    difference,
    estimate,
    is_settled,
    natural_order,
    setting,
)

ERROR, AREA = "held-out error, %", "area under training error"
MEASURES = {"error": ERROR, "final_training_error": "training error at the end, %", "area": AREA}
PATHS = {"path length": "val_path_length", "path energy": "val_path_energy",
         "final training loss": "val_final_loss"}  # fmt: skip
SWITCHES = {"distance": {"length": "length", "energy": "energy"},
            "loss": {"loss": "with loss", "noloss": "no loss"},
            "stabilizer": {"stab": "stabilizer", "nostab": "no stabilizer"}}  # fmt: skip
HUES = {("length", "loss"): "#0073b3", ("length", "noloss"): "#79b4da",
        ("energy", "loss"): "#b36b00", ("energy", "noloss"): "#dfb069"}  # fmt: skip
DATASETS = {"facescrub": "FaceScrub", "notmnist": "notMNIST", "mnist": "MNIST",
            "fashion": "Fashion-MNIST", "cifar10": "CIFAR-10", "svhn": "SVHN",
            "cifar100": "CIFAR-100", "traffic": "Traffic Signs"}  # fmt: skip
NEEDED = {"ablation": [f"axis.{switch}" for switch in SWITCHES], "table3": ["axis.heldout"],
          "table1_long": ["axis.alphabets"]}  # fmt: skip
PAPER = pathlib.Path(__file__).parent / "paper"
SMOOTH = 5  # batches or meta-steps in the running means of curves

Groups = Mapping[Look, pd.DataFrame]  # from the look of a row to its runs, one a seed


def add_sections(page, results: Results, study: str) -> None:
    """Adds the sections of a study: known sweeps by their layout, the others one by one."""
    layout = {
        "omniglot": {"table1_long": _table1_long, "table1": _table1, "ablation": _ablation,
                     "jacobian": _jacobian, "paths": _paths, "rates": _trials},
        "multi_cv": {"table3": _table3, "rates": _trials, "hat_scale_400": _trials},
    }.get(study, {"jacobian": _jacobian})  # fmt: skip
    runs, axes = results.runs, _axes(results.runs)
    sweeps = [*runs["sweep"], *["jacobian"] * len(results.jacobian)]
    for sweep in dict.fromkeys([*(name for name in layout if name in sweeps), *sweeps]):
        fits = set(NEEDED.get(sweep, ())) <= set(_axes(_of(runs, sweep)))
        (layout.get(sweep, _any_sweep) if fits else _any_sweep)(page, results, sweep)
    page.section("Runs")
    page.table("cost", ["sweep", "finished runs", "seeds", "meta-training", "gradient steps"], [
        [sweep, f"{of['finished'].sum()} of {len(of)}", _listed(of["seed"]),
         _duration(of["seconds"].sum()), f"{of['gradient_steps'].sum():,.0f}"]
        for sweep, of in runs.groupby("sweep", sort=False)
    ])  # fmt: skip
    header = ["run", "method", "other axes", "seed", "meta-steps", "gradient steps",
              "skipped tasks", "wall time, s", "finished"]  # fmt: skip
    page.table("runs", header, [
        [name, look(run["method"]).label, _named(axes, run[axes]), run["seed"],
         *(f"{run[name]:,.0f}" for name in ("meta_steps", "gradient_steps", "tasks_skipped",
                                            "seconds")), "yes" if run["finished"] else "no"]
        for name, run in runs.iterrows()
    ], folded="Every run")  # fmt: skip
    for machine, number in runs["environment"].replace("", None).value_counts().items():
        page.text(f"{number} runs: {machine}.")


def _any_sweep(page, results, sweep):
    _section(page, results, sweep, sweep)
    groups = {}
    for initialization in (LEARNED, FRESH):
        scores = _of(results.scores(initialization), sweep)
        axes = ["method", *_axes(scores)]
        keys = list(scores[axes].drop_duplicates().itertuples(index=False, name=None))
        for key in sorted(keys, key=lambda key: in_order(scores["method"]).index(key[0])):
            label = " · ".join(filter(None, [look(key[0]).label, _named(axes[1:], key[1:])]))
            known = look(key[0], len(groups))
            row = known if label == known.label else look(label, len(groups))
            if initialization == FRESH:
                alone = len(keys) == 1 and row != look("none")
                label = look("none").label if alone else f"{label}, no pretraining"
                row = dataclasses.replace(look("none"), label=label)
            groups[row] = scores[(scores[axes] == key).all(axis=1)]
    if groups:
        _score_table(page, groups)
        errors = _estimates(groups, "error")
        shown = {row: groups[row] for row in sorted(errors, key=lambda row: errors[row].mean)[:10]}
        learned = {row: of for row, of in shown.items() if LEARNED in set(of["initialization"])}
        panels = _learning(results, shown) | _meta_training(results, learned)
        figure = figures.curves(panels, columns=2, height=3.5 * -(-len(panels) // 2))
        page.figure("curves", figure, sweep)


def _score_table(page, groups: Groups, extra=None):
    """Adds a table, a row a group: measures, steps to the target, diverged tasks, and `extra`."""
    scores = pd.concat(groups.values())
    columns = {head: _bold(_estimates(groups, name)) for name, head in MEASURES.items()}
    steps = {}
    for row, runs in groups.items():
        text = estimate(runs, "steps").text(0, each=False).replace(" (one seed)", "")
        steps[row] = f"{text} ({runs['reached'].sum():.0f} of {runs['tasks'].sum()} tasks)"
    target = _listed((f"{100 * value:g}" for value in scores["target_error"]), " or ")
    columns[f"steps to {target} % training error"] = _bold(_estimates(groups, "capped"), steps)
    columns["diverged tasks"] = {row: _diverged(runs) for row, runs in groups.items()}
    columns |= extra or {}
    rows = [[row.label, *(texts[row] for texts in columns.values())] for row in groups]
    note = f"{_listed(scores['tasks'], ' or ')} held-out tasks a seed; seeds: "
    note += f"{_listed(scores['seed'])}; batch norm {_listed(scores['batch_norm'], ' or ')}."
    page.table("scores", ["method", *columns], rows, note)


def _learning(results, groups: Groups) -> dict[str, dict[Look, pd.DataFrame]]:
    panels = {"Training error over gradient steps": "training_errors",
              "Training loss over gradient steps": "training_losses"}  # fmt: skip
    return {
        title: _drawn(lambda of, name=name: results.adaptation(of, name, SMOOTH), groups)
        for title, name in panels.items()
    }


def _meta_training(results, groups: Groups) -> dict[str, dict[Look, pd.DataFrame]]:
    panels = {"Meta-training: loss along the paths over gradient steps": ("loss", SMOOTH),
              "Meta-training: validation area over gradient steps": ("val_auc", 1)}  # fmt: skip
    drawn = {
        title: _drawn(lambda of, name=name: results.metric(of, *name, "gradient_steps"), groups)
        for title, name in panels.items()
    }
    return {title: curves for title, curves in drawn.items() if curves}


def _trials(page, results, sweep):
    """Adds the trials of each method, each repeated on the axis "heldout" if there is one."""
    title = "Learning-rate trials" if sweep == "rates" else sweep
    _section(page, results, title, sweep)
    runs = _of(results.runs, sweep).join(results.scores()[[*MEASURES, "tasks", "diverged"]])
    axes = [axis for axis in _axes(runs) if axis != "axis.heldout"]
    held_out = _datasets(runs)
    rows = []
    for method in in_order(runs["method"]):
        own = runs[runs["method"] == method]
        trials = dict(list(own.groupby(axes, sort=False))) if axes else {(): own}
        means = {key: of[[*MEASURES]].mean(skipna=False) for key, of in trials.items()}
        chosen = min((key for key in trials if means[key]["area"] >= 0), default=None,
                     key=lambda k: (trials[k]["diverged"].sum(), means[k]["area"]))  # fmt: skip
        for key, of in trials.items():
            areas = [of.loc[of["axis.heldout"] == name, "area"].mean() for name in held_out]
            cells = [f"{value:.1f}".replace("nan", "–") for value in (*areas, *means[key])]
            mark = "✓ chosen" if key == chosen else ""
            rows.append([look(method).label, *key, *cells, _diverged(of), mark])
    header = ["method", *(axis.removeprefix("axis.") for axis in axes)]
    header += [*(f"area, {_dataset(name)}" for name in held_out), *MEASURES.values()]
    note = f"Evaluated on the {_listed(runs['split'])} split, seeds: {_listed(runs['seed'])}."
    page.table("trials", [*header, "diverged tasks", ""], rows, note)


def _table1(page, results, sweep):
    scores = _of(results.scores(), sweep)
    configured = scores["config"].map(lambda c: setting(c, "alphabet_splits.train_alphabets"))
    named = scores.get("axis.alphabets", configured)
    # No pretraining needs no alphabets, and is compared at 20.
    scores["alphabets"] = pd.to_numeric(named.where(named != "", configured)).replace(0, 20)
    paper = pd.read_csv(PAPER / "table1.csv").pivot(
        index="alphabets", columns="method", values="error"
    )
    paper = paper[in_order(paper)].rename(columns=look)
    groups = {number: _methods(of) for number, of in scores.groupby("alphabets")}
    errors = {number: _estimates(of, "error") for number, of in groups.items()}
    large = {number: of for number, of in groups.items() if number >= 20}
    if not large or scores["alphabets"].isna().any():
        return _any_sweep(page, results, sweep)
    _section(page, results, "Methods compared", sweep)
    for number, of in large.items():
        theirs = {row: f"{paper[row].get(number, '–')}" if row in paper else "–" for row in of}
        _score_table(page, of, {f"paper, {number} alphabets: error, %": theirs})
        ranked = dict(sorted(errors[number].items(), key=lambda item: item[1].mean))
        note = f"{number} pretraining alphabets."
        if number == min(large):
            page.figure("bars", figures.bars(ranked, ERROR), f"methods_{number}", note)
    page.section("Error against pretraining alphabets")
    texts = {n: _bold(of, {row: each.text(each=False) for row, each in of.items()})
             for n, of in errors.items()}  # fmt: skip
    ours = {row: pd.DataFrame({n: of[row].values for n, of in errors.items() if row in of}).T
            for row in _methods(scores)}  # fmt: skip
    rows = [[row.label, *(texts[n].get(row, "–") for n in groups)] for row in ours]
    if look("none") in ours:  # the number of alphabets makes no difference to it
        ours[look("none")] = pd.DataFrame([ours[look("none")].mean()] * len(groups), groups)
    ours = {row: table for row, table in ours.items() if len(table) > 1}
    titles = ("Held-out error, %, over alphabets", "The paper (other protocol and scale)")
    drawn = dict(zip(titles, (ours, {row: paper[[row]] for row in paper})))
    page.figure("alphabets", figures.curves(drawn))
    page.table("by_alphabets", ["method", *(f"{n} alphabet{'s' * (n > 1)}" for n in groups)], rows)
    page.table("paper1", ["alphabets", *(row.label for row in paper)],
               [[f"{n}", *map(str, row)] for n, row in paper.iterrows()],
               folded="The whole of the paper's table 1")  # fmt: skip
    page.section("Learning on held-out tasks")
    page.figure("learning", figures.curves(_learning(results, large[min(large)])))
    page.section("Meta-training")
    page.figure("meta_training", figures.curves(_meta_training(results, large[min(large)])))


def _table1_long(page, results, sweep):
    _section(page, results, "The paper's table 1, by its protocol", sweep)
    scores = _of(results.scores(), sweep)
    paper = pd.read_csv(PAPER / "table1.csv", index_col=["alphabets", "method"])["error"]
    header = ["training error at the end, %", "paper, %", ERROR, AREA, "path length",
              "gradient steps", "meta-training"]  # fmt: skip
    for number, of in reversed([*scores.groupby(pd.to_numeric(scores["axis.alphabets"]))]):
        groups, rows = _methods(of), []
        texts = [_bold(_estimates(groups, name)) for name in [*MEASURES, "path_length"]]
        for row, (error, final, area, length) in zip(groups, zip(*(t.values() for t in texts))):
            theirs = paper.get((number, groups[row]["method"].iloc[0].partition("_")[0]), "–")
            cost = groups[row][["gradient_steps", "seconds"]].mean()
            rows.append([row.label, final, f"{theirs}", error, area, length,
                         f"{cost.iloc[0]:,.0f}", _duration(cost.iloc[1])])  # fmt: skip
        note = f"{number} pretraining alphabets, {_listed(of['tasks'], ' or ')} held-out tasks."
        page.table("by_protocol", ["method, rate", *header], rows, note)
    _paths(page, results, sweep, "Theorem 1 by the paper's protocol")


def _ablation(page, results, sweep):
    _section(page, results, "Ablation of Leap", sweep)
    scores, groups = _of(results.scores(), sweep), {}
    for values in itertools.product(*SWITCHES.values()):
        runs = scores[(scores[NEEDED["ablation"]] == values).all(axis=1)]
        label = " · ".join(names[value] for names, value in zip(SWITCHES.values(), values))
        if len(runs):
            dash = "-" if values[2] == "stab" else (0, (3, 1.5))
            groups[Look(label, HUES[values[:2]], dash=dash)] = runs
    if groups:
        _score_table(page, groups)
        page.figure("ablation", figures.bars(_estimates(groups, "error"), ERROR))
        losses = _drawn(lambda of: results.metric(of, "loss", SMOOTH), groups)
        drawn = {"Mean training loss along the paths over meta-steps": losses}
        page.figure("ablation_training", figures.curves(drawn, from_zero=False))


def _jacobian(page, results, _):
    page.section("How far is the Jacobian from the identity?")
    rows, drawn = [], {}
    measured = results.jacobian.pivot(index=["learning_rate", "step"], columns="task", values="rho")
    for place, (rate, rho) in enumerate(measured.groupby(level=0)):
        row = Look(f"learning rate {rate:g}", figures.RAMP[place % 3], "osD"[place % 3], width=2.2)
        drawn[row] = rho.droplevel(0)
        means = zip(rho.mean(axis=1), rho.sem(axis=1))
        rows.append([row.label, *(f"{mean:.3g} ± {error:.2g}" for mean, error in means)])
    page.figure("jacobian", figures.curves({"ρ over gradient steps": drawn}, thin=True))
    steps = measured.index.unique("step")
    page.table("rho", ["", *(f"step {step:.0f}" for step in steps)], rows)
    paths = results.jacobian.groupby(["learning_rate", "task"]).first()
    size = f"{paths['matrix_bytes'].max() / 2**20:.1f} MiB, whatever the number of steps"
    page.text(f"Layer {_listed(paths['layer'])}, {paths['parameters'].max():,} numbers. Matrices: "
              f"{size}. {len(paths)} paths took {_duration(paths['seconds'].sum())}.")  # fmt: skip


def _paths(page, results, sweep, title="Theorem 1: do the paths get shorter?"):
    _section(page, results, title, sweep)
    runs, rows = _of(results.runs, sweep), []
    if "axis.alphabets" in runs:
        runs = runs[runs["axis.alphabets"].isin(["", "30"])]
    drawn: dict[str, dict] = {f"{name.capitalize()} over meta-steps": {} for name in PATHS}
    for row, of in _methods(runs[runs["method"] != "none"]).items():
        tables = [path_curve(results, of, metric) for metric in PATHS.values()]
        if all(len(table) > 1 for table in tables):
            ends = [table.mean(axis=1).iloc[[0, -1]] for table in tables]
            falls = tables[0].diff().iloc[1:] <= 0
            cells = [f"{first / last:.2f}× ({first:.3g} → {last:.3g})" for first, last in ends]
            rows.append([row.label, *cells, f"{falls.sum().sum()} of {falls.size}"])
            for curves, table in zip(drawn.values(), tables):
                curves[row] = table
    if rows:
        page.figure("paths", figures.curves(drawn, thin=True), sweep)
        page.table("paths_table", ["method", *PATHS, "intervals without a rise"], rows)


def path_curve(results: Results, runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Returns a validation metric over meta-steps, with that of no pretraining at meta-step 0."""
    table, sweep = results.metric(runs, metric), _of(results.runs, runs["sweep"].iloc[0])
    fresh = sweep[sweep["method"] == "none"]
    before = results.metric(fresh, metric).rename(columns=fresh["seed"])
    if not set(runs["seed"]) <= set(before):
        return table
    first = before.iloc[[0]][[*runs["seed"]]].set_axis([0]).set_axis(runs.index, axis=1)
    return pd.concat([first, table])


def _table3(page, results, sweep):
    _section(page, results, "Which pretraining helps?", sweep)
    scores = _of(results.scores(), sweep)
    runs = dict(list(scores.groupby(["axis.heldout", "method"])))
    methods = in_order(scores["method"])
    datasets = {d: [m for m in methods if (d, m) in runs] for d in _datasets(scores)}
    shared = [d for d in datasets if datasets[d] == methods]
    if not shared or not {"leap", "none"} <= set(methods):
        return page.text("No held-out data set is finished by Leap, no pretraining and the others.")
    paper = pd.read_csv(PAPER / "table3.csv", index_col=["heldout", "method"])
    found = {
        name: {key: estimate(of, name) for key, of in runs.items()}
        for name in (*MEASURES, "gradient_steps", "seconds")
    }
    means = {
        name: {m: combine(statistics.fmean, *(of[d, m] for d in shared)) for m in methods}
        for name, of in found.items()
    }
    header = ["test error, %", *[*MEASURES.values()][1:], "pretraining steps",
              "meta-training, a run", "paper: test / train / area"]  # fmt: skip
    theirs = paper[paper.index.isin(shared, level=0)].groupby("method").mean()
    note = f"Mean over {len(shared)} held-out data sets: {', '.join(map(_dataset, shared))}."
    page.table("transfer", ["method", *header], _transfer_rows(means, methods, theirs), note)
    panels, learners = {}, [m for m in methods if m != "none"]
    for title, name in {"Area under training error": "area", "Test error": "error"}.items():
        rows = {_dataset(d): {m: found[name][d, m] for m in methods} for d in shared}
        rows[f"mean over {len(shared)}"] = means[name]
        panels[title] = pd.DataFrame([
            [combine(lambda pair: pair[0] / (pair[1] or float("nan")), of[m], of["none"])
             for m in learners] for of in rows.values()
        ], list(rows), learners)  # fmt: skip
    page.figure("relative", figures.ratios(panels, "no pretraining = 1"))
    rows = []
    for m in (m for m in methods if m != "leap"):
        rows.append([look(m).label])
        for name in ("area", "error"):
            gap = difference(means[name]["leap"], means[name][m])
            gaps = [difference(found[name][d, "leap"], found[name][d, m]).mean for d in shared]
            settled = "settled" if is_settled(gap) else "not settled"
            rows[-1].append(f"{gap.text(each=False)}, {settled}".replace("-", "−"))
            rows[-1].append(f"{sum(each < 0 for each in gaps)} of {len(shared)} data sets")
    lower = "Leap is lower on"
    page.table("gaps", ["Leap minus", "area", lower, "test error, points", lower], rows)
    page.section("Data set by data set: does any pretraining hurt?")
    rows = []
    for d, own in datasets.items():
        of_methods = {name: {m: of[d, m] for m in own} for name, of in found.items()}
        theirs = paper[paper.index.isin([d], level=0)].droplevel(0)
        for m, row in zip(own, _transfer_rows(of_methods, own, theirs)):
            images, numbers = runs[d, m]["examples"].max(), runs[d, m]["parameters"].max()
            rows.append([f"{_dataset(d)} ({images:,.0f} images)", *row, f"{numbers:,.0f}"])
    page.table("by_dataset", ["held out", "method", *header, "parameters"], rows)
    theirs = paper.apply(_slashed, axis=1).unstack()[in_order(paper.index.unique("method"))]
    rows = [[_dataset(d), *row] for d, row in theirs.loc[[*DATASETS]].iterrows()]
    header = ["held out", *(look(m).label for m in theirs)]
    page.table("paper3", header, rows, folded="The whole of the paper's table 3")
    page.section("Learning the held-out data set")
    drawn = {}
    for d, own in datasets.items():
        of_methods = {look(m): runs[d, m] for m in own}
        learned = _drawn(lambda of: results.adaptation(of, "training_errors", 20), of_methods)
        drawn[_dataset(d)] = learned
    figure = figures.curves(drawn, logarithmic=True, columns=4, height=5)
    page.figure("by_dataset_learning", figure, "learning")


def _transfer_rows(found, methods, paper) -> list[list[str]]:
    texts = {name: _bold(found[name]) for name in MEASURES}
    steps, seconds = found["gradient_steps"], found["seconds"]
    return [
        [look(m).label, *(of[m] for of in texts.values()), f"{steps[m].mean:,.0f}",
         _duration(seconds[m].mean), _slashed(paper.loc[m]) if m in paper.index else "–"]
        for m in methods
    ]  # fmt: skip


def _datasets(runs) -> list[str]:
    """Returns the held-out data sets of runs: the paper's in its order, then the others."""
    present = set(runs["axis.heldout"]) if "axis.heldout" in runs else set()
    return [
        name
        for name in [*DATASETS, *natural_order(present - set(DATASETS))]
        if name in present - {""}
    ]


def _dataset(name) -> str:
    return DATASETS.get(name, name)


def _slashed(row) -> str:
    return " / ".join(f"{value:.1f}" for value in row)


def _section(page, results, title, sweep):
    """Begins a section, and names the runs of its sweep that are not finished."""
    page.section(title)
    runs = _of(results.runs, sweep)
    names = [name.split("/", 1)[1] for name in runs.index[runs["finished"] == 0]]
    if names:
        page.text(f"Not finished: {len(names)} of {len(runs)} runs: {', '.join(names)}.")


def _of(table, sweep) -> pd.DataFrame:
    return table[table["sweep"] == sweep].copy()


def _axes(runs) -> list[str]:
    return [name for name in runs if name.startswith("axis.") and (runs[name] != "").any()]


def _named(axes, values) -> str:
    return " · ".join(f"{axis[len('axis.') :]} {v}" for axis, v in zip(axes, values) if v)


def _methods(scores) -> Groups:
    methods = enumerate(in_order(scores["method"]))
    return {look(method, place): scores[scores["method"] == method] for place, method in methods}


def _estimates(groups: Groups, column) -> dict[Look, Estimate]:
    return {row: estimate(runs, column) for row, runs in groups.items()}


def _drawn(curve, groups: Groups) -> dict[Look, pd.DataFrame]:
    """Returns the curves of groups, without those that have none."""
    tables = {row: curve(runs) for row, runs in groups.items()}
    return {row: table for row, table in tables.items() if not table.empty}


def _bold(estimates: Mapping, texts=None) -> dict:
    """Returns the texts of estimates, the lowest in bold unless all are the same."""
    means = {key: each.mean for key, each in estimates.items() if each.values}
    lowest = min(means.values()) if len(set(means.values())) > 1 else None
    texts = texts or {key: each.text() for key, each in estimates.items()}
    return {
        key: re.sub(r"^[^(,]*[^(, ]", r"**\g<0>**", text) if means.get(key) == lowest else text
        for key, text in texts.items()
    }


def _listed(values, between=", ") -> str:
    return between.join(natural_order(map(str, values)))


def _diverged(scores) -> str:
    return f"{scores['diverged'].sum():.0f} of {scores['tasks'].sum():.0f}"


def _duration(seconds: float) -> str:
    """Formats seconds as "48 s", "12 min" or "3.4 h"; a dash for none."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds else "–"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
