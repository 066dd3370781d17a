"""Judges a matcher file on standard input: `python -m paceline_predictor.tasks.trial`; code 0 is a yes."""

import sys

from paceline_predictor.onnx_file import ModelFileError
from paceline_predictor.tasks.matcher import TaskMatcher

if __name__ == "__main__":
    try:
        TaskMatcher(sys.stdin.buffer.read())
    except ModelFileError as error:
        print(error)
        sys.exit(1)
