"""`ctxext.results`, the earlier name of `ctxext.records`."""

import sys

from ctxext import records

sys.modules[__name__] = records
