"""How this process shows a Ray cluster who it is: by a token, where there is one.

``RAY_AUTH_MODE`` (``token`` or ``disabled``) is the user's; unset, a token that is there is shown. Ray
itself does so for a cluster that it finds by itself, never for one that is named.  A cluster without
tokens takes whoever shows one.
"""

from __future__ import annotations

import os

from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray._raylet import Config as RayConfig  # type: ignore[attr-defined]

MODE = "RAY_AUTH_MODE"
PLACES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or the file ~/.ray/auth_token"


def log_in() -> None:
    """From now on show the token of `PLACES`, if there is one and the user has not said otherwise."""
    if MODE not in os.environ and _has_token():
        os.environ[MODE] = "token"
        RayConfig.initialize("")  # Ray has read the environment at its import.


def need_none() -> None:
    """A cluster that this process starts, for itself on its own machine, asks for no token."""
    os.environ.setdefault(MODE, "disabled")


def headers() -> dict[str, str]:
    """What a request to a cluster's dashboard carries: the token, after `log_in`."""
    return dict(get_auth_headers_if_auth_enabled({}))


def missing() -> str:
    """What to look at where a cluster answers and does not let this process in."""
    if os.environ.get(MODE, "").lower() == "disabled":
        return (
            f"{MODE}=disabled is set, and a cluster that asks for a token takes nobody without: unset it, "
            f"and give the cluster's token in {PLACES}"
        )
    if not _has_token():
        return f"if it asks for a token, give it in {PLACES} (on the head node: `ray get-auth-token`)"
    return f"is the token in {PLACES} the cluster's own? On the head node `ray get-auth-token` shows it"


def _has_token() -> bool:
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
