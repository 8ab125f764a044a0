"""Tests of jigclu.system.compile_cache, in separate processes: torch reads the setting once."""

import getpass
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from absl.testing import absltest, parameterized

from jigclu import config
from jigclu.system import compile_cache

# Prints torch's own setting after the command's modules are imported.
_PROGRAM = (
    "import jigclu.launch; from torch._inductor.runtime.cache_dir_utils import cache_dir; "
    "print(cache_dir())"
)


class CompileCacheTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"XDG_CACHE_HOME": "{}/caches"}, "{}/caches/jigclu/compiled-DIGEST"),
        ({"HOME": "{}"}, "{}/.cache/jigclu/compiled-DIGEST"),
        ({"XDG_CACHE_HOME": "{}", "TORCHINDUCTOR_CACHE_DIR": "{}/own"}, "{}/own"),
        # A file cannot contain a cache.
        ({"XDG_CACHE_HOME": "/dev/null", "TMPDIR": "{}"}, "{}/torchinductor_USER"),
    )
    def test_folder_follows_the_environment(self, given: dict[str, str], expected: str) -> None:
        folder = self.create_tempdir().full_path
        names = ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment |= {name: value.format(folder) for name, value in given.items()}
        environment["PYTHONPATH"] = str(config.ROOT)
        run = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        expected = expected.format(folder).replace("DIGEST", compile_cache.processor_digest())
        expected = expected.replace("USER", getpass.getuser())
        self.assertEqual(run.stdout.strip(), expected)

    def test_processors_with_different_instruction_sets_share_nothing(self) -> None:
        file = Path(self.create_tempfile().full_path)
        digests: list[str] = []
        for flags in ("avx2", "avx2 avx512_bf16"):
            # Clock rates vary over cores and time and must not matter.
            file.write_text(f"cpu MHz : {len(digests)}\nflags : {flags}\nflags : {flags}\n")
            digests.append(compile_cache.processor_digest(file))
        with mock.patch.dict(os.environ, ATEN_CPU_CAPABILITY="default"):
            digests.append(compile_cache.processor_digest(file))
        self.assertLen(set(digests), 3)
        file.write_text("cpu MHz : 7\nflags : avx2\n")
        self.assertEqual(compile_cache.processor_digest(file), digests[0])


if __name__ == "__main__":
    absltest.main()
