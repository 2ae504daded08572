"""The report on the Omniglot study: result files in, one page out.

results → statistics → sections (headline, curves, ablation, jacobian, paths, trials, record) of a
document → page. Sections hold what is said, `wording` how it is said of any numbers, `figures`
and `drawing` what is shown.
"""

from leap_tf.experiments.report.page import write_report
from leap_tf.experiments.report.results import ResultsError

__all__ = ["ResultsError", "write_report"]
