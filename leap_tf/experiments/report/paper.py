"""Table 1 of the paper, to stand beside our figures and never among them.

Flennerhag, Moreno, Lawrence and Damianou, "Transferring Knowledge across Learning Processes",
ICLR 2019, appendix E, table 1: mean test error in % on held-out Omniglot tasks, by the number of
pretraining alphabets. Their protocol and budget are others (appendix F): up to 5,000 meta-steps
of 20 tasks of up to 1,000 gradient steps, 64 filters, early stopping in both loops.
"""

SOURCE = "Flennerhag et al., “Transferring Knowledge across Learning Processes”, ICLR 2019, table 1"
PROTOCOL = (
    "The paper's figures come from another protocol and budget: up to 5,000 meta-steps of 20 tasks "
    "of up to 1,000 gradient steps each. They are here to compare orders, not levels. Its MAML is "
    "the first-order approximation, its finetuning multi-headed."
)

ALPHABETS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)

_ERRORS = {
    "leap": (7.8, 6.5, 3.8, 3.1, 2.8, 2.7, 2.5, 2.4, 2.5, 2.2, 2.4, 2.1, 1.9, 2.3, 2.0, 1.8),
    "finetuning": (7.5, 6.3, 4.7, 4.4, 4.2, 4.0, 3.6, 3.8, 3.9, 3.7, 3.9, 3.7, 3.5, 3.3, 3.8, 3.6),
    "reptile": (8.4, 8.0, 7.2, 6.3, 6.1, 5.7, 5.4, 5.2, 5.1, 5.1, 4.7, 4.9, 5.0, 4.5, 4.8, 4.6),
    "fomaml": (8.8, 8.8, 8.6, 8.4, 8.7, 9.2, 8.6, 8.6, 9.1, 8.7, 9.4, 8.6, 8.7, 9.2, 9.3, 8.7),
    "none": (17.0, 16.8, 17.9, 16.1, 15.9, 16.1, 16.2, 16.6, 16.7, 15.9, 16.6, 16.2, 15.9, 16.9,
             17.0, 16.1),
}  # fmt: skip

TABLE_1: dict[str, dict[int, float]] = {
    method: dict(zip(ALPHABETS, errors, strict=True)) for method, errors in _ERRORS.items()
}
