"""`python -m paceline_predictor.length_trial < FILE`: judges a length model; code 1 and a line say what is wrong."""

import sys

from paceline_predictor.length_graph import opened
from paceline_predictor.onnx_file import ModelFileError

if __name__ == "__main__":
    try:
        opened(sys.stdin.buffer.read())
    except ModelFileError as error:
        print(error)
        sys.exit(1)
