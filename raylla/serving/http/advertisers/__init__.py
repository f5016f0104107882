"""What advertisers work with beside the campaign API: reports, uploads of ads, and the console page."""

from raylla.serving.http.advertisers import console, reporting, uploading

ROUTERS = (reporting.router, uploading.router, console.router)

__all__ = ["ROUTERS"]
