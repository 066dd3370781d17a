"""`python -m paceline_gateway --config FILE [--set a.b=c ...]`."""

import sys

from paceline_gateway.app import GatewayServiceConfig, run
from paceline_runtime.service import run_service

if __name__ == "__main__":
    sys.exit(run_service("gateway", GatewayServiceConfig, run, scrape=True))
