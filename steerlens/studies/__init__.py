"""Experiments that write a directory of results, and its report and paper figures."""

from steerlens.studies.axbench_detection import detect
from steerlens.studies.axbench_results import AxBenchResults
from steerlens.studies.axbench_steering import steer
from steerlens.studies.cast import CastTable, cast_table, nested_subsets
from steerlens.studies.paper import export, regenerate
from steerlens.studies.quickstart import run_demo
from steerlens.studies.reports import report
from steerlens.studies.sentiment import Sentiment, run_sentiment
from steerlens.studies.study import Study, read_study

__all__ = [
    "AxBenchResults",
    "CastTable",
    "Sentiment",
    "Study",
    "cast_table",
    "detect",
    "export",
    "nested_subsets",
    "read_study",
    "regenerate",
    "report",
    "run_demo",
    "run_sentiment",
    "steer",
]
