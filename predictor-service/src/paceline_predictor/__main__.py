"""`python -m paceline_predictor --config FILE [--set a.b=c ...]`."""

import sys

from paceline_predictor.app import run
from paceline_predictor.config import Config
from paceline_runtime.service import run_service

if __name__ == "__main__":
    sys.exit(run_service("predictor", Config, run))
