"""Whether tests run that take long, as `make faults` asks for."""

import os

SLOW = bool(os.environ.get("SLOW_TESTS"))
