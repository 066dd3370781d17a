"""`python -m paceline_scheduler --config FILE [--set a.b=c ...]`."""

import sys

from paceline_runtime.service import run_service
from paceline_scheduler.app import serve
from paceline_scheduler.config import SchedulerServiceConfig

if __name__ == "__main__":
    sys.exit(run_service("scheduler", SchedulerServiceConfig, serve))
