"""The endpoint on Ray Serve: its deployments, its versions, a canary beside what serves."""
