"""Pages and films of a run."""

from qgf.reports._page import Page as Page
from qgf.reports._report import report as report
from qgf.reports.video import film as film
