"""Whether a server answers: what sync needs to know before it uploads, and doctor reports."""

import urllib.error
import urllib.request


def unreachable(url: str, timeout: float) -> str:
    """Why no server answers at a URL within `timeout` seconds; empty if one does, whatever it answers."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError as error:  # a server answered, if only a proxy's gateway when it is a 5xx
        return f"status {error.code}" if error.code >= 500 else ""
    except Exception as error:
        return str(getattr(error, "reason", error))
    return ""
