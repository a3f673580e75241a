"""`ctxext.patches`, the public name of `ctxext.methods`: the registry of methods, and specs."""

import sys

from ctxext import methods
from ctxext.methods import base

sys.modules[__name__] = methods
sys.modules[f"{__name__}.base"] = base
