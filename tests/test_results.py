"""The figures in the README and in docs/results are those of the raw files beside them."""

import importlib.util
import json
import pathlib
import re

import gin
import pytest

from leap_tf.experiments import config
from leap_tf.experiments.report.page import write_report
from leap_tf.experiments.report.results import read_sweep
from leap_tf.experiments.report.trials import chosen, trials_of

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


def summarise():
    spec = importlib.util.spec_from_file_location("summarise", RESULTS / "summarise.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table_under(document, words):
    """The first table of a page after some words of it."""
    text = (ROOT / document).read_text().split(words, 1)[1]
    return re.search(r"(?:^\|.*\n)+", text, re.M).group(0)


@pytest.mark.parametrize("study", ["omniglot_cpu", "unicode_cpu"])
@pytest.mark.parametrize("document", ["README.md", "docs/results/README.md"])
def test_tables_are_those_of_the_raw_files(study, document):
    module = summarise()
    collected = module.read(RESULTS / study)
    assert {len(seeds) for seeds in collected.values()} == {3}
    rows = module.markdown_table(collected).splitlines()[2:]
    assert len(rows) == 2
    for row in rows:
        assert row in (ROOT / document).read_text()


@pytest.mark.parametrize("study", ["omniglot_cpu", "unicode_cpu"])
def test_learned_is_clearly_below_no_pretraining_at_every_seed(study):
    collected = summarise().read(RESULTS / study)
    pairs = zip(collected["learned initialization"], collected["no pretraining"], strict=True)
    for learned, fresh in pairs:
        assert learned.error < 0.75 * fresh.error
        assert learned.area_under_error < 0.75 * fresh.area_under_error
        assert [task.name for task in learned.tasks] == [task.name for task in fresh.tasks]


@pytest.mark.parametrize("letter", "abcde")
def test_the_benchmark_table_is_that_of_its_output(letter):
    output = (RESULTS / "task_loop.txt").read_text()
    (row,) = re.findall(
        rf"^\| \({letter}\) .*?\| ([\d.]+)", (RESULTS / "README.md").read_text(), re.M
    )
    if letter == "e":
        measured = max(float(value) for value in re.findall(r"for Leap ([\d.]+)", output))
    else:
        measured = float(re.search(rf"^\({letter}\).*?\s([\d.]+)   \(", output, re.M).group(1))
        measured *= 100 if letter == "c" else 1
    assert float(row) == pytest.approx(measured, abs=0.006 if letter in "abd" else 0.06)


@pytest.mark.parametrize("study", ["omniglot", "multi_cv"])
def test_a_report_is_that_of_the_raw_files(study, tmp_path):
    """Its text, tables and findings; pictures depend on the versions that draw them."""
    committed = (RESULTS / study / "report.md").read_text()
    _, text = write_report(RESULTS / study, tmp_path)
    assert pathlib.Path(text).read_text() == committed


@pytest.mark.parametrize(
    ("study", "heading", "methods"),
    [("omniglot", "Against other methods", 6), ("multi_cv", "Whole data sets", 5)],
)
def test_the_readme_shows_rows_of_a_report(study, heading, methods):
    report = (RESULTS / study / "report.md").read_text().splitlines()
    rows = re.findall(r"^\|.*\|$", table_under("README.md", heading), re.M)
    assert len(rows) == 2 + methods
    assert set(rows) <= set(report)


def test_the_multi_cv_table_uses_the_rates_that_its_trials_chose():
    trials = read_sweep(RESULTS / "multi_cv" / "rates")
    best = {
        method: chosen(trials_of([cell for cell in trials.cells if cell.method == method]))
        for method in {cell.method for cell in trials.cells}
    }
    folder = ROOT / "gin_configs" / "multi_cv"
    try:
        config.read_configuration([folder / "table3_cpu.gin"])
        _, cells = config.configured_cells()
        assert len(cells) == 70
        for cell in cells:
            config.read_configuration([folder / "cell_cpu.gin"], cell.bindings)
            for schedule in ("inner", "judged"):
                rate = gin.query_parameter(f"{schedule}/CosineDecay.initial_learning_rate")
                assert str(rate) == best[cell.values["method"]].values["inner"]
    finally:
        gin.clear_config()


def rows_of(document, heading):
    """The cells of the first table under a heading of a page, without its two header lines."""
    lines = table_under(document, heading).splitlines()[2:]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def lines_of(name):
    return [json.loads(line) for line in (RESULTS / "atari" / name).read_text().splitlines()]


def factor(line):
    ratio = line["final_reward"] / line["random_final_reward"]
    assert ratio == pytest.approx(line["factor"], abs=0.01)
    return f"{ratio:.2f}"


def test_the_single_agents_are_those_of_their_raw_file():
    lines = lines_of("single_task.jsonl")
    assert [line["seed"] for line in lines] == [101, 102, 103]
    assert rows_of("docs/atari.md", "## Does an agent learn?") == [
        ["agent", *(f"{line['final_reward']:.1f}" for line in lines)],
        ["random play", *(f"{line['random_final_reward']:.1f}" for line in lines)],
        ["factor", *(factor(line) for line in lines)],
    ]


def test_the_screening_is_that_of_its_raw_file():
    factors = {
        (line["game"], str(line["seed"])): factor(line)
        for line in lines_of("screening.jsonl")
        if not line["bindings"] and line["factor"]
    }
    rows = rows_of("docs/atari.md", "## The study on two cores")
    assert len(rows) == 10
    for game, _, *figures, _ in rows:
        assert figures == [factors[game, seed] for seed in ("201", "202")]


def test_the_sizes_of_meta_gradients_are_those_of_their_raw_file():
    sizes = {
        (line["distance"], line["include_loss"], line["game"]): line["meta_gradient_norm"]
        for line in lines_of("meta_gradient_sizes.jsonl")
    }
    rows = rows_of("docs/atari.md", "The meta-gradient's norm, per segment")
    settings = [("energy", True), ("length", True), ("length", False)]
    games = ["ms_pacman", "gopher", "phoenix", "assault"]
    assert [row[1:] for row in rows] == [
        [f"{sizes[*setting, game]:.4f}" for game in games] for setting in settings
    ]


def test_the_gains_over_fresh_agents_with_other_value_heads_are_those_of_their_file():
    groups = json.loads((RESULTS / "atari" / "study" / "summary.json").read_text())["groups"]
    fresh = json.loads((RESULTS / "atari" / "study" / "fresh_value_gain_1.json").read_text())
    percent, ahead = {}, 0
    for group, games in groups.items():
        for game, figures in games.items():
            learned = figures["Leap"]["area"]
            percent[game] = round(100 * (learned["mean"] / fresh[game]["mean"] - 1))
            if group != "seen":
                controls = 2 * fresh[game]["values"]  # once for each of the two encoders
                ahead += sum(a > b for a, b in zip(learned["values"], controls, strict=True))
    assert percent == {"crazy_climber": 7, "alien": 5, "krull": 0, "ms_pacman": 11}
    assert ahead == 19
    page = (ROOT / "docs" / "atari.md").read_text()
    assert "at +7 %, +5 %, 0 % and +11 %, and ahead on 19 of 30" in page


def test_the_gains_of_each_encoder_are_those_of_its_agents():
    groups = json.loads((RESULTS / "atari" / "study" / "summary.json").read_text())["groups"]
    percent, ahead = {}, {}
    for games in groups.values():
        for game, figures in games.items():
            learned, fresh = figures["Leap"]["area"]["values"], figures["fresh"]["area"]["values"]
            for run, values in enumerate((learned[:5], learned[5:])):
                percent[game, run] = round(100 * (sum(values) / sum(fresh) - 1))
                ahead[game, run] = sum(a > b for a, b in zip(values, fresh, strict=True))
    assert ahead["crazy_climber", 0] == ahead["crazy_climber", 1] == 5
    held_out = ("crazy_climber", "alien", "krull")
    assert [sum(ahead[game, run] for game in held_out) for run in (0, 1)] == [13, 10]
    assert [percent[game, 0] for game in ("alien", "krull", "ms_pacman")] == [6, 9, -2]
    assert [percent[game, 1] for game in ("alien", "krull", "ms_pacman")] == [0, 0, 2]
    climber = groups["held out"]["crazy_climber"]
    learned, fresh = (climber[kind]["area"]["mean"] for kind in ("Leap", "fresh"))
    assert round(100 * (learned / fresh - 1)) == 15
