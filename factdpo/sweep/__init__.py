"""Many runs: which they are, how they are launched, and what came of all of them."""

import sys
from types import ModuleType

import factdpo


class _Callable(ModuleType):
    """`factdpo.sweep(...)` means the function even when this package, which has its name, has been imported."""

    __call__ = staticmethod(factdpo.sweep)


sys.modules[__name__].__class__ = _Callable
