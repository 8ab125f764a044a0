"""Keeps what torch.compile generates for the next start; imported before torch, which reads it.

By default torch uses a temporary folder, which may be gone at the next start.
"""

import hashlib
import os
import platform
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def processor_digest(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns eight characters that tell processors of different instruction sets apart.

    Machines may share a home: code compiled for one can crash on another. The instruction
    sets that ATen and oneDNN are limited to count as well.
    """
    limits = [os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
    text = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    instructions = {line for line in text.splitlines() if line.startswith(("flags", "Features"))}
    parts = [platform.machine(), *limits, *sorted(instructions or {text})]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


# Not Path.home(), which raises where nobody has a home.
_USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
os.environ.setdefault(VARIABLE, str(_USER_CACHE / "jigclu" / f"compiled-{processor_digest()}"))
