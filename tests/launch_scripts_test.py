"""Tests of the scripts in launch/, run with stand-ins that print their arguments."""

import os
import re
import subprocess
from pathlib import Path

from absl.testing import absltest, parameterized

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = ("one_machine.sh", "several_machines.sh", "slurm.sbatch")
SLURM = {
    "SLURM_JOB_NODELIST": "node[3-4]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_ID": "77",
}
# Flags of jigclu.launch that the scripts, or the examples in them, pass.
FLAGS = {"--gin_file", "--gin_bindings", "--workdir", "--dry_run"}
LAUNCHER = ["-m", "jigclu.launch", "--gin_file=gin/pretrain_r50.gin", "--workdir=runs/pretrain_r50"]


class LaunchScriptsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.commands = Path(self.create_tempdir().full_path)
        # Relative paths start in the folder of the user; Python finds the project in its own.
        self.places = (str(self.commands), str(ROOT))
        self.slurm = SLURM | {"SLURM_SUBMIT_DIR": str(self.commands)}
        self._stand_in("torchrun", r'printf "%s\n" torchrun "$PWD" "$PYTHONPATH" "$@"')
        self._stand_in("srun", 'echo srun; exec "$@"')
        self._stand_in("scontrol", 'echo "$*" >&2; printf "node3\nnode4\n"')
        self._stand_in("nvidia-smi", "exit 9")

    def _stand_in(self, name: str, body: str) -> None:
        path = self.commands / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def _run(self, script: str, *arguments: str, **variables: str) -> list[str]:
        """Returns the words that the stand-ins printed; the script runs in a folder of its own."""
        environment = {"PATH": f"{self.commands}:{os.environ['PATH']}", **variables}
        return subprocess.run(
            [LAUNCH / script, *arguments],
            cwd=self.commands,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()

    @parameterized.parameters(*SCRIPTS)
    def test_is_executable_and_parses(self, script: str) -> None:
        self.assertTrue(os.access(LAUNCH / script, os.X_OK))
        subprocess.run(["bash", "-n", LAUNCH / script], check=True)
        self.assertIn("set -euo pipefail\n", (LAUNCH / script).read_text())

    def test_every_script_is_tested(self) -> None:
        # The Python script is tested in tests/tasks/benchmark/gpu_check_test.py.
        self.assertCountEqual([path.name for path in LAUNCH.iterdir()], (*SCRIPTS, "gpu_check.py"))

    def test_one_machine_starts_torchrun(self) -> None:
        words = self._run("one_machine.sh")
        (endpoint,) = (word for word in words if word.startswith("--rdzv-endpoint="))
        # Empty, and new for each run.
        file = Path(endpoint.partition("=")[2])
        self.addCleanup(file.unlink)
        self.assertEqual(file.stat().st_size, 0)
        self.assertEqual(
            words,
            [
                *("torchrun", *self.places, "--nproc-per-node=1", "--local-addr=127.0.0.1"),
                *("--rdzv-backend=c10d", "--rdzv-conf=store_type=file", endpoint, *LAUNCHER),
            ],
        )

    def test_one_machine_uses_every_gpu(self) -> None:
        self._stand_in("nvidia-smi", r'[[ $1 == --list-gpus ]] && printf "GPU 0\nGPU 1\nGPU 2\n"')
        self.assertIn("--nproc-per-node=3", self._run("one_machine.sh"))
        self.assertIn("--nproc-per-node=2", self._run("one_machine.sh", GPUS="2"))

    def test_several_machines_start_torchrun(self) -> None:
        variables = {"NODES": "4", "HEAD": "10.0.0.1", "PORT": "5", "RUN_ID": "x", "GPUS": "8"}
        self.assertEqual(
            self._run("several_machines.sh", **variables),
            [
                *("torchrun", *self.places, "--nnodes=4", "--nproc-per-node=8"),
                *("--rdzv-backend=c10d", "--rdzv-endpoint=10.0.0.1:5", "--rdzv-id=x"),
                *LAUNCHER,
            ],
        )

    def test_several_machines_needs_the_head(self) -> None:
        with self.assertRaises(subprocess.CalledProcessError) as raised:
            self._run("several_machines.sh", NODES="2")
        self.assertIn("HEAD", raised.exception.stderr)

    def test_slurm_starts_torchrun_on_every_node(self) -> None:
        self.assertEqual(
            self._run("slurm.sbatch", SLURM_GPUS_ON_NODE="4", **self.slurm, REPOSITORY=str(ROOT)),
            [
                *("srun", "torchrun", *self.places, "--nnodes=2", "--nproc-per-node=4"),
                *("--rdzv-backend=c10d", "--rdzv-endpoint=node3:29400", "--rdzv-id=77"),
                *LAUNCHER,
            ],
        )

    def test_slurm_stops_the_run_and_requeues_the_job_before_its_time_limit(self) -> None:
        requeued = self.commands / "requeued"
        self._stand_in("scontrol", f'if [[ $1 == requeue ]]; then echo "$*" >{requeued}; fi')
        # The signal of Slurm, and the reaction of the run to the one that srun receives.
        react = "trap 'echo saved; exit 1' USR1"
        self._stand_in("srun", f"{react}; sleep 0.5; kill -USR1 $PPID; sleep 0.5; sleep 0.5")
        with self.assertRaises(subprocess.CalledProcessError) as raised:
            self._run("slurm.sbatch", **self.slurm)
        self.assertEqual(raised.exception.stdout, "saved\n")
        self.assertEqual(requeued.read_text(), "requeue 77\n")
        self.assertIn("#SBATCH --signal=B:USR1@", (LAUNCH / "slurm.sbatch").read_text())

    @parameterized.parameters(*SCRIPTS)
    def test_overrides_and_arguments_with_spaces_pass_through(self, script: str) -> None:
        words = self._run(
            script,
            "--gin_bindings=pretrain.batch_size = 512",
            "--dry_run",
            GIN_FILE="gin/my own.gin",
            WORKDIR="/tmp/a run",
            HEAD="node3",
            **self.slurm,
        )
        expected = ["--gin_file=gin/my own.gin", "--workdir=/tmp/a run"]
        expected += ["--gin_bindings=pretrain.batch_size = 512", "--dry_run"]
        self.assertEqual(words[words.index("jigclu.launch") + 1 :], expected)

    @parameterized.parameters(*SCRIPTS)
    def test_scripts_exit_with_the_status_of_torchrun(self, script: str) -> None:
        self._stand_in("torchrun", "exit 3")
        with self.assertRaises(subprocess.CalledProcessError) as raised:
            self._run(script, HEAD="node3", **self.slurm)
        self.assertEqual(raised.exception.returncode, 3)

    @parameterized.parameters(*SCRIPTS)
    def test_passes_only_flags_of_the_launcher(self, script: str) -> None:
        # Its flags are written with underscores, those of torchrun and sbatch with dashes.
        named = set(re.findall(r"--[a-z]+_[a-z]+|--workdir", (LAUNCH / script).read_text()))
        self.assertContainsSubset(named, FLAGS)
        self.assertContainsSubset({"--gin_file", "--workdir"}, named)

    def test_flags_exist(self) -> None:
        launcher = (ROOT / "jigclu" / "launch.py").read_text()
        for flag in FLAGS:
            self.assertRegex(launcher, rf'DEFINE_\w+\(\s*"{flag.removeprefix("--")}"')


if __name__ == "__main__":
    absltest.main()
