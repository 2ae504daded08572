"""The report on a study, Omniglot or Multi-CV: result files in, one page out.

results → statistics → sections of a document → page. Omniglot's sections are headline, curves,
ablation, jacobian and paths; Multi-CV's are transfer_tables and transfer_curves, of the numbers of
transfer and the sentences of transfer_findings; both have trials and record. Sections hold what is
said, `wording` how it is said of any numbers, `figures`, `transfer_figures` and `drawing` what is
shown.
"""

from leap_tf.experiments.report.checks import ResultsError
from leap_tf.experiments.report.page import write_report

__all__ = ["ResultsError", "write_report"]
