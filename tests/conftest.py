"""Set-up of every test."""

from absl import flags

import jigclu.system.compile_cache  # noqa: F401  # Before torch is imported, as in the command.

flags.FLAGS.mark_as_parsed()
