"""Who may talk to a server on this machine: loopback names, and secrets."""

import hmac

LOOPBACK = ("localhost", "127.0.0.1")
"""Names that only this machine can have. Flask's TRUSTED_HOSTS knows no IPv6 address."""


def is_loopback(host: str | None) -> bool:
    """Whether a server under this name needs no token.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return host in LOOPBACK


def same_secret(sent: str, secret: str) -> bool:
    """Whether what was sent is the secret; how long that takes tells nothing of it.

    >>> same_secret("guess", "token")
    False
    """
    return hmac.compare_digest(sent.encode(errors="replace"), secret.encode())
