"""How billing and loss notices are signed: as Standard Webhooks 1.0 says, and in a header of raylla's own.

    webhook-id:        the notice's id, the same at every attempt
    webhook-timestamp: Unix seconds of this attempt
    webhook-signature: v1,<base64 HMAC-SHA256 of "<id>.<timestamp>.<body>">, one for each token key
    Raylla-Signature:  t=<Unix seconds>,k=<key id>,v1=<hex HMAC-SHA256 of "<t>.<body>">

Each advertiser has a secret of its own from each of `RAYLLA_TOKEN_KEYS`, so that whoever holds the one of
an old key can verify until that key is dropped. `Raylla-Signature` is of the first key alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime

from raylla.serving.security.tokens import TokenKeys


def notice_keys(tokens: TokenKeys, advertiser_id: str) -> dict[str, bytes]:
    """The 32-byte secrets that sign an advertiser's notices by key id, the newest first."""
    return tokens.derived(f"notices/{advertiser_id}")


def webhook_secret(key: bytes) -> str:
    """A secret as verifiers of Standard Webhooks take it: ``whsec_<base64>``."""
    return f"whsec_{base64.b64encode(key).decode()}"


def signed(keys: dict[str, bytes], id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The headers of an attempt ``at`` to deliver the notice ``id``, whose body is sent as it is here."""
    seconds = int(at.timestamp())
    told = f"{id}.{seconds}.".encode() + body
    macs = [base64.b64encode(_mac(key, told)).decode() for key in keys.values()]
    first = next(iter(keys))
    own = _mac(keys[first], f"{seconds}.".encode() + body).hex()
    return {
        "webhook-id": id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(f"v1,{mac}" for mac in macs),
        "Raylla-Signature": f"t={seconds},k={first},v1={own}",
    }


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, hashlib.sha256)
