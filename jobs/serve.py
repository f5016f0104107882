"""`ray job submit --working-dir . -- python jobs/serve.py CONFIG --run RUN`: onto the job's own cluster."""

import sys

import ray

from raylla.cli import app

if __name__ == "__main__":
    dashboard = ray.init("auto", log_to_driver=False).dashboard_url
    app(["serve", *sys.argv[1:], "--address", f"http://{dashboard}"])
