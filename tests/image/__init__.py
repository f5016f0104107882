"""The image of cluster/Dockerfile, made without a Docker daemon: `python -m tests.image FOLDER`."""
