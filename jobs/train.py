"""`ray job submit --working-dir . -- python jobs/train.py configs/pocket.yaml --run DIR`."""

import sys

from raylla.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
