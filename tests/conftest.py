"""Lets absltest cases run under pytest, which never parses absl's flags."""

from absl import flags

flags.FLAGS.mark_as_parsed()
