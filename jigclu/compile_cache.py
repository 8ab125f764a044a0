"""Keeps what torch.compile makes for the next start; imported before torch, which it tells.

By itself torch takes a temporary folder, which may be gone at the next start.
"""

import os
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# Not Path.home(), which raises where nobody has a home.
_USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
os.environ.setdefault(VARIABLE, str(_USER_CACHE / "jigclu" / "compiled"))
