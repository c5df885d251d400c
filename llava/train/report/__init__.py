"""What a run was and how it went: `run_settings.json` while it runs, `run_report.html` behind it."""

from llava.train.report.page import REPORT_FILE, write_report
from llava.train.report.record import observed_run

__all__ = ["REPORT_FILE", "observed_run", "write_report"]
