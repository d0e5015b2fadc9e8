"""Whether a server answers: what sync needs to know before it uploads, and doctor reports."""

import json
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


def no_hub(endpoint: str, timeout: float) -> str:
    """Why an address does not answer as the Hugging Face hub does, within `timeout` seconds; empty if it does.

    A mirror is known by its answer about a model: the model's commit, or the hub's own code of an error.
    """
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models/EleutherAI/pythia-14m", timeout=timeout) as answer:
            return "" if "sha" in json.load(answer) else "what answers is no hub"
    except urllib.error.HTTPError as error:
        return "" if error.headers.get("X-Error-Code") else f"status {error.code}, and not as from a hub"
    except (ValueError, TypeError):  # a page, or JSON of something else
        return "what answers is no hub"
    except Exception as error:
        return str(getattr(error, "reason", error))
