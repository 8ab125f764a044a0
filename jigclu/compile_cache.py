"""Keeps what torch.compile makes for the next start; imported before torch, which it tells.

By itself torch takes a temporary folder, which may be gone at the next start.
"""

import os
from pathlib import Path

_USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_USER_CACHE / "jigclu" / "compiled"))
