"""Table 3 of the paper, to stand beside our figures and never among them.

Flennerhag, Moreno, Lawrence and Damianou, "Transferring Knowledge across Learning Processes",
ICLR 2019, appendix G, table 3: test error in %, training error in % and area under the training
error, 0–100, on each of eight data sets when it is held out. Their data and budget are others.
"""

from collections.abc import Iterable

SOURCE = "Flennerhag et al., “Transferring Knowledge across Learning Processes”, ICLR 2019, table 3"
PROTOCOL = (
    "The paper's figures come from whole data sets and another budget (its table 4): up to 1,000 "
    "meta-steps of 10 tasks of up to 10 epochs each, up to 100 epochs on the held-out task, early "
    "stopping in both loops. They are here to compare orders, not levels. Its HAT and Progressive "
    "Nets are implementations of the paper's authors."
)

# From each data set, as sweeps name it, to how readers see it; in the order of the paper.
LABELS = {
    "facescrub": "FaceScrub",
    "notmnist": "notMNIST",
    "mnist": "MNIST",
    "fashion": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "svhn": "SVHN",
    "cifar100": "CIFAR-100",
    "traffic": "Traffic Signs",
}

# Why a data set of the paper cannot be held out by whoever has only what is public.
UNOBTAINABLE = {"facescrub": "could not be obtained here"}

METHODS = ("leap", "finetuning", "progressive", "hat", "none")
MEASURES = ("error", "training_error", "area")

_FIGURES = {
    "facescrub": ((19.9, 0.0, 11.6), (32.7, 0.0, 13.2), (18.0, 0.0, 8.9), (25.6, 0.1, 14.6),
                  (18.2, 0.0, 10.5)),
    "notmnist": ((5.3, 0.6, 2.9), (5.4, 2.0, 4.4), (5.4, 3.1, 3.7), (6.0, 2.8, 5.4),
                 (5.4, 2.6, 5.1)),
    "mnist": ((0.7, 0.1, 0.6), (0.9, 0.1, 0.8), (0.8, 0.0, 0.7), (0.8, 0.3, 1.2),
              (0.9, 0.2, 1.0)),
    "fashion": ((8.0, 4.2, 6.8), (8.9, 3.8, 7.0), (8.7, 5.4, 9.2), (9.5, 5.5, 8.1),
                (8.4, 4.7, 7.8)),
    "cifar10": ((21.2, 10.8, 17.5), (27.4, 13.3, 20.7), (24.2, 15.2, 24.0), (27.7, 21.2, 27.3),
                (26.2, 13.1, 23.0)),
    "svhn": ((8.4, 5.6, 7.5), (10.9, 6.1, 10.5), (10.1, 6.3, 13.8), (10.5, 5.7, 8.5),
             (10.3, 6.9, 11.5)),
    "cifar100": ((52.0, 30.5, 43.4), (59.2, 31.5, 44.1), (55.7, 42.1, 54.6), (62.0, 49.8, 58.4),
                 (54.8, 33.1, 50.1)),
    "traffic": ((2.9, 0.0, 1.2), (5.7, 0.0, 1.7), (3.6, 0.0, 4.0), (5.4, 0.0, 2.3),
                (3.6, 0.0, 2.4)),
}  # fmt: skip

# From each data set to each method to each measure.
TABLE_3: dict[str, dict[str, dict[str, float]]] = {
    dataset: {
        method: dict(zip(MEASURES, figures, strict=True))
        for method, figures in zip(METHODS, rows, strict=True)
    }
    for dataset, rows in _FIGURES.items()
}


def dataset_label(dataset: str) -> str:
    """Returns how readers see a data set; as sweeps name it if it is none of the paper's."""
    return LABELS.get(dataset, dataset)


def dataset_order(datasets: Iterable[str]) -> list[str]:
    """Returns data sets once each: the paper's in its order, then the others by name."""
    present = set(datasets)
    return [name for name in LABELS if name in present] + sorted(present - set(LABELS))


def mean_over(datasets: Iterable[str], method: str) -> dict[str, float]:
    """Returns a method's figures as a mean over data sets; empty unless it has all of them."""
    rows = [TABLE_3.get(dataset, {}).get(method) for dataset in datasets]
    found = [row for row in rows if row is not None]
    if not found or len(found) < len(rows):
        return {}
    return {measure: sum(row[measure] for row in found) / len(found) for measure in MEASURES}
