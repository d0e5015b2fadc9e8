"""Where factdpo's own conf/ and sweeps/ lie."""

from pathlib import Path

import factdpo


def conf_folder() -> Path:
    """factdpo's own conf/: inside the package when it was installed from a wheel, else beside it in the checkout."""
    package = Path(factdpo.__file__).resolve().parent
    shipped = package / "_config" / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"
