"""Tests of jigclu.compile_cache, in processes of their own: torch reads it once."""

import os
import subprocess
import sys

from absl.testing import absltest, parameterized

from jigclu import config

# What torch itself says, after the command's modules are imported.
_PROGRAM = (
    "import jigclu.launch; from torch._inductor.runtime.cache_dir_utils import cache_dir; "
    "print(cache_dir())"
)


class CompileCacheTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"XDG_CACHE_HOME": "{}/caches"}, "{}/caches/jigclu/compiled"),
        ({"HOME": "{}"}, "{}/.cache/jigclu/compiled"),
        ({"XDG_CACHE_HOME": "{}", "TORCHINDUCTOR_CACHE_DIR": "{}/own"}, "{}/own"),
    )
    def test_folder(self, given: dict[str, str], expected: str) -> None:
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
        self.assertEqual(run.stdout.strip(), expected.format(folder))


if __name__ == "__main__":
    absltest.main()
