"""The program python -m jigclu.doctor: examines machine, data and settings before a long run.

It takes the flags of `jigclu.launch`, under torchrun too, and trains for a few steps without
keeping anything. Exit status 1: a finding is an error; 2: the configuration is rejected.
"""

import json
import sys

from absl import flags

from jigclu import launch
from jigclu.system import signals
from jigclu.system.device import launched_rank
from jigclu.system.errors import UserError, printable
from jigclu.tasks.doctor.examine import examine
from jigclu.tasks.doctor.finding import Finding
from jigclu.training.task import TrainingTask

_JSON = flags.DEFINE_bool("json", False, "Print the findings as one JSON document.")


def _run() -> None:
    configuration, workdir = launch.load_configuration()
    task = configuration.task
    if not isinstance(task, TrainingTask):
        raise UserError(
            f"{type(task).__name__} does not train, and needs no doctor: pass the gin file of a "
            "training task, such as --gin_file=gin/pretrain_r50.gin"
        )
    findings = []
    try:
        for finding in examine(task, workdir):
            findings.append(finding)
            if launched_rank() == 0 and not _JSON.value:
                print(printable(_line(finding)), flush=True)
    except KeyboardInterrupt as stopped:
        raise signals.Stopped("not all checks were made") from stopped
    if launched_rank() == 0 and _JSON.value:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


def _line(finding: Finding) -> str:
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return f"{finding.level:8}{finding.name}: {finding.text}{remedy}"


if __name__ == "__main__":
    launch.console(_run)
