"""Python imports this module when it starts, before anything else: the registration of the dialect, and nothing more."""

from lazyfs.format import dialects
from tests.dialect.front import FRONT

dialects.DIALECTS = (FRONT, *dialects.DIALECTS)
