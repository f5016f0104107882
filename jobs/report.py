"""`ray job submit --working-dir . -- python jobs/report.py RUN`."""

import sys

from raylla.cli import app

if __name__ == "__main__":
    app(["report", *sys.argv[1:]])
