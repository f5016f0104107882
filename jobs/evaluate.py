"""`ray job submit --working-dir . -- python jobs/evaluate.py RUN [RUN ...]`."""

import sys

from raylla.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
