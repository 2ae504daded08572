"""Sentences and cells made from numbers. Whatever they say follows from what they are given."""

from collections.abc import Mapping, Sequence

from leap_tf.experiments.report.document import Prose, Value
from leap_tf.experiments.report.statistics import Estimate, difference, is_settled

NBSP = "\u00a0"  # keeps a number and what belongs to it on one line
PERCENT = NBSP + "%"
CLEAR = f"zero is outside the gap's 95{PERCENT} confidence interval (Student's t)"


def number(value: float | None, digits: int = 1) -> str:
    """Returns a number as text; a dash for None and for what is not finite."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return "–"
    return f"{value:.{digits}f}"


def small(value: float) -> str:
    """Returns a number of any size with three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def plus_minus(estimate: Estimate, digits: int = 1) -> str:
    """Returns "34.5 ± 1.4", without the second part for a single seed, on one line."""
    if not estimate.values:
        return "–"
    error = estimate.standard_error
    mean = number(estimate.mean, digits)
    return mean if error is None else f"{mean}{NBSP}±{NBSP}{number(error, digits)}"


def per_seed(estimate: Estimate, digits: int = 1) -> str:
    """Returns the values of the seeds, in their order."""
    return ", ".join(number(value, digits) for value in estimate.values.values())


def count(amount: int, noun: str, plural: str = "") -> str:
    """Returns "1 seed", "3 seeds"."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def listing(items: Sequence[str], last: str = "and") -> str:
    """Returns "a", "a and b", "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def duration(seconds: float) -> str:
    """Returns "48 s", "12 min" or "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def ranked(estimates: Mapping[str, Estimate]) -> list[str]:
    """Returns names by mean, the lowest first; those without a value are left out."""
    with_value = [name for name, estimate in estimates.items() if estimate.values]
    return sorted(with_value, key=lambda name: estimates[name].mean)


def first_place(estimates: Mapping[str, Estimate], what: str, unit: str, points: str) -> str:
    """Says which name is lowest, which is next, and whether the gap is more than chance.

    Args:
        estimates: from each name, as readers see it, to its estimate.
        what: the quantity, such as "held-out error".
        unit: behind a value, such as " %".
        points: behind a difference, such as " points".
    """
    order = ranked(estimates)
    if not order:
        return f"No finished cell has a finite {what}."
    best = estimates[order[0]]
    lead = f"{order[0]} has the lowest {what}: {plus_minus(best)}{unit}"
    if len(order) == 1:
        return f"Only {order[0]} has results so far: {what} {plus_minus(best)}{unit}."
    second = estimates[order[1]]
    gap = difference(second, best)
    after = f"; {order[1]} is next with {plus_minus(second)}{unit}"
    if not gap.values:
        return f"{lead}{after} on other seeds."
    return f"{lead}{after}, {plus_minus(gap)}{points} more on the same seeds. {verdict(gap)}"


def verdict(gap: Estimate) -> str:
    """Says whether a difference is settled by the seeds there are."""
    seeds = len(gap.values)
    if seeds < 2:
        return "With one seed there is no telling whether that is chance."
    if is_settled(gap):
        return f"All {seeds} seeds agree, and {CLEAR}."
    return f"{count(seeds, 'seed')} do not settle which of the two is lower."


def order_against(order: Sequence[str], reference: Sequence[str]) -> str:
    """Says how one order compares with another of the same names, the lowest first."""
    shared = [name for name in reference if name in order]
    own = [name for name in order if name in shared]
    if len(shared) < 2:
        return ""
    pairs = [(a, b) for i, a in enumerate(shared) for b in shared[i + 1 :]]
    turned = [(a, b) for a, b in pairs if own.index(a) > own.index(b)]
    ours, are = " < ".join(own), "is" if len(turned) == 1 else "are"
    if not turned:
        return f"The order {ours} is the paper's."
    named = listing([f"{b} before {a}" for a, b in turned])
    return (
        f"The order is {ours}; in the paper it is {' < '.join(shared)}. "
        f"{len(turned)} of {count(len(pairs), 'pair')} {are} the other way round: {named}."
    )


def change(first: float, last: float, digits: int = 1, unit: str = "") -> str:
    """Returns "falls from 60.0 % to 34.5 %", "rises …" or "stays at …"."""
    before, after = number(first, digits), number(last, digits)
    if before == after:
        return f"stays at {after}{unit}"
    verb = "falls" if last < first else "rises"
    return f"{verb} from {before}{unit} to {after}{unit}"


def missing_notice(names: Sequence[str], total: int) -> list[Prose]:
    """Returns a notice that names the cells without a result; nothing if there are none."""
    if not names:
        return []
    text = f"Missing: {len(names)} of {count(total, 'cell')} not finished: {', '.join(names)}."
    return [Prose(text, notice=True)]


def diverged_sentence(diverged: Mapping[str, tuple[int, int]]) -> str:
    """Says which names had diverged tasks, of how many; these are left out of means."""
    some = [f"{name} {lost} of {total}" for name, (lost, total) in diverged.items() if lost]
    if not some:
        return ""
    return f"Tasks diverged and are left out of the means: {listing(some)}."


def emphasised(values: Mapping[str, float]) -> set[str]:
    """Returns the names whose value is the lowest; none if several values are all the same."""
    finite = {name: value for name, value in values.items() if value < float("inf")}
    if len(values) > 1 and len(set(values.values())) == 1:
        return set()
    return {name for name, value in finite.items() if value == min(finite.values())}


def named(look_label: str, colour: str) -> Value:
    """Returns the cell that names a row, with its colour before it."""
    return Value(look_label, colour=colour, numeric=False)
