"""What a run tells: the person (terminal) and the disk (metrics)."""

from distloop.report.metrics import COLUMNS, Log, Logs, MetricsLog, NoLog, TensorBoardLog
from distloop.report.pace import Plan
from distloop.report.summary import Fast, Learned, Sent, Summary
from distloop.report.terminal import Bar, Plain, Progress, Reporter, Silent, open_reporter

__all__ = [
    "COLUMNS",
    "Bar",
    "Fast",
    "Learned",
    "Log",
    "Logs",
    "MetricsLog",
    "NoLog",
    "Plain",
    "Plan",
    "Progress",
    "Reporter",
    "Sent",
    "Silent",
    "Summary",
    "TensorBoardLog",
    "open_reporter",
]
