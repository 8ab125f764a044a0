"""The command as users run it, where it matters in a process of its own."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, flagsaver, parameterized
from PIL import Image

from jigclu import config, launch
from jigclu.training import checkpoint
from tests.folder_case import FolderTestCase

# A small demo with 3 steps.
SMALL = """
include 'gin/demo.gin'
ProceduralImages.size = 32
train_split/ProceduralImages.images = 14
val_split/ProceduralImages.images = 10
eval_transform.resize = 32
eval_transform.crop = 32
knn_evaluator.neighbors = 3
pretrain.batch_size = 4
schedule.epochs = 1
schedule.warmup_epochs = 0
jigsaw.patch_size = 16
pretrain.small_stem = True
compute.device = 'cpu'
compute.precision = 'float32'
compute.compile = False
loading.workers = 0
reporting.log_every = 1
"""
FOLDER_OF_IMAGES = ("pretrain.source=@UnlabeledImages()", "pretrain.evaluators=()")
MODULE = ("-m", "jigclu.launch")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", *MODULE)


def bindings(*texts: str) -> list[str]:
    return [f"--gin_bindings={text}" for text in texts]


def command_environment() -> dict[str, str]:
    """Returns the environment of commands: one thread, no GPU, no network."""
    others = {name: v for name, v in os.environ.items() if name != "RANK"}
    return others | {
        "PYTHONPATH": str(config.ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": socket.if_nameindex()[0][1],
    }


class LaunchTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.workdir = self.folder / "run"
        self.small = self.folder / "small.gin"
        self.small.write_text(SMALL)

    def command(
        self, *flags: str, program: tuple[str, ...] = MODULE
    ) -> "subprocess.CompletedProcess[str]":
        """Runs the command from an empty folder, without network access."""
        environment = command_environment()
        return subprocess.run(
            [sys.executable, *program, *flags],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def call(self, *flags: str) -> "subprocess.CompletedProcess[str]":
        """Runs the command in this process, without the time to start one."""
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        # A command that exits leaves signals ignored.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        output, errors = io.StringIO(), io.StringIO()
        code: object = 0
        with (
            flagsaver.flagsaver(),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            try:
                launch.main(launch._parse(["jigclu", *flags]))
            except SystemExit as exited:
                code = exited.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(flags, code, output.getvalue(), errors.getvalue())

    def demo(
        self, *texts: str, program: tuple[str, ...] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Runs the small demo, in this process without a program."""
        flags = (f"--gin_file={self.small}", f"--workdir={self.workdir}", *bindings(*texts))
        return self.command(*flags, program=program) if program else self.call(*flags)

    def succeeded(self, done: "subprocess.CompletedProcess[str]") -> str:
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stderr

    def rejected(self, done: "subprocess.CompletedProcess[str]") -> str:
        """Returns the line that reports a mistake."""
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(done.stdout, "")
        *before, error = done.stderr.splitlines()
        # A slow machine prints progress first, with the elapsed time.
        for line in before:
            self.assertRegex(line, r", \d+:\d\d:\d\d$")
        self.assertStartsWith(error, "error: ")
        return error

    @parameterized.parameters(("jigclu",), ("jigclu.launch",))
    def test_help_lists_tasks_files_and_flags(self, module: str) -> None:
        done = self.command("--help", program=("-m", module))
        self.assertEqual(done.returncode, 0)
        for text in ("  pretrain ", "  gin/demo.gin ", "Demo: ResNet-18", "--[no]dry_run"):
            self.assertIn(text, done.stdout)
        self.assertNotIn("gin/base/knn.gin", done.stdout)

    def test_command_without_flags_lists_what_can_be_run(self) -> None:
        done = self.command(program=("-m", "jigclu"))
        self.assertEqual(done.returncode, 2)
        self.assertIn("  gin/demo.gin ", done.stdout)
        self.assertIn("error: --gin_file is missing", done.stderr)

    def test_dry_run_without_the_data_reports_the_download(self) -> None:
        done = self.call("--gin_file=gin/pretrain_r18_cifar10.gin", "--dry_run")
        self.succeeded(done)
        plan = done.stdout.partition("\n\n")[2].splitlines()
        self.assertEqual(plan[0], "downloads: CIFAR10 to data")
        self.assertEqual(plan[-1], "workdir: runs/pretrain_r18_cifar10")
        self.assertIn("jigsaw.patch_size = 16", done.stdout.splitlines())
        self.assertEqual(list(self.folder.iterdir()), [self.small])

    def test_dry_run_with_the_published_weights_downloads_and_writes_nothing(self) -> None:
        images = self.folder / "images" / "a"
        images.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(images / "0.png")
        with mock.patch.dict(os.environ, {"TORCH_HOME": str(self.folder / "torch")}):
            done = self.call(
                "--gin_file=gin/export.gin",
                *bindings(
                    "export.init_from='jigclu_200e'",
                    f"UnlabeledImages.root='{images}'",
                    "export.images=1",
                    "export.formats=('safetensors',)",
                ),
                "--dry_run",
            )
        self.succeeded(done)
        self.assertIn("writes: resnet50.safetensors, card.md, SHA256SUMS", done.stdout)
        self.assertRegex(done.stdout, r"\ndownloads: https://.*/JigClu_200e.pth to .*/torch/hub/")
        self.assertCountEqual(os.listdir(self.folder), ["small.gin", "images"])

    def test_runs_resumes_and_rejects_another_configuration(self) -> None:
        printed = self.succeeded(self.demo("schedule.stop_after_steps=2", program=MODULE))
        self.assertIn("devices: 1 x cpu", printed)
        self.assertIn("done: 2 steps", printed)
        self.assertEqual(printed.count("\nstep 2/2"), 1)
        given = config.load([str(self.workdir / "config.gin")], [])
        operative = config.load([str(self.workdir / "operative_config.gin")], [])
        self.assertEqual(given.resolved, operative.resolved)
        self.assertIn("pretrain.batch_size = 4\n", given.resolved)
        self.assertNotEmpty(list((self.workdir / "tensorboard").iterdir()))
        report = (self.workdir / "report.md").read_text()
        self.assertIn("# run: pretrain\n\nFinished. knn_accuracy ", report)
        self.assertIn("| devices | 1 x cpu |\n| data | 14 images, 10 classes |", report)
        self.assertIn("| pretrain.batch_size | 64 | 4 |", report)
        self.assertIn("data:image/png;base64,", (self.workdir / "report.html").read_text())

        printed = self.succeeded(self.demo(program=TORCHRUN))
        self.assertIn("devices: 2 x cpu", printed)
        self.assertIn("step_00000002.pt at step 2", printed)
        self.assertEqual(printed.count("done: 3 steps"), 1)
        self.assertIn("chance 10.0%", printed)

        before = self.contents()
        printed = self.rejected(self.demo("pretrain.batch_size=2"))
        self.assertIn("step_00000003.pt", printed)
        self.assertIn("pretrain.batch_size was 4 and is 2", printed)
        self.assertIn(f'--workdir="{self.workdir}_2"', printed)
        self.assertEqual(self.contents(), before)

    def contents(self) -> dict[str, bytes]:
        files = (path for path in self.workdir.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    def test_dry_run_writes_nothing(self) -> None:
        done = self.command(f"--gin_file={self.small}", f"--workdir={self.workdir}", "--dry_run")
        self.succeeded(done)
        lines = done.stdout.splitlines()
        self.assertIn("pretrain.batch_size = 4", lines)
        self.assertIn("eval_transform.mean = (0.485, 0.456, 0.406)", lines)
        self.assertIn("devices: 1 x cpu", lines)
        self.assertIn("data: 14 images, 10 classes", lines)
        self.assertIn("steps: 3, 3 per epoch, 1 epochs", lines)
        self.assertIn("samples: 12 images, 4 per step", lines)
        self.assertIn("montages: 4 of 32x32 pixels per device", lines)
        # resnet18 without its last layer, with a 3x3 stem, has 11,168,832 parameters, the heads
        # 512*512+512 + 512*128+128 + 512*4+4 = 330,372: 11,499,204 numbers of 4 bytes.
        self.assertIn("(parameters 46.0, momentum 46.0, ", done.stdout)
        self.assertIn(f"workdir: {self.workdir}", lines)
        self.assertEqual(list(self.folder.iterdir()), [self.small])

    def test_starts_from_the_weights_of_another_run(self) -> None:
        self.succeeded(self.demo("schedule.stop_after_steps=1", "pretrain.evaluators=()"))
        path = checkpoint.latest(self.workdir)
        self.workdir = self.folder / "other"
        printed = self.succeeded(
            self.demo(
                f"pretrain.init_from='{path}'", "pretrain.seed=5", "schedule.stop_after_steps=1"
            )
        )
        self.assertIn(f"initial weights of {path}, encoder = ", printed)

        self.workdir = self.folder / "third"
        printed = self.rejected(
            self.demo(f"pretrain.resume_from='{path}'", "pretrain.encoder='resnet34'")
        )
        self.assertIn("pretrain.encoder was 'resnet18' and is 'resnet34'", printed)
        printed = self.rejected(self.demo("pretrain.resume_from='none.pt'"))
        self.assertIn("error: pretrain.resume_from: checkpoint none.pt does not exist", printed)
        self.assertFalse(self.workdir.exists())

    @parameterized.parameters(
        (
            ("--gin_file=gin/dmeo.gin",),
            ("gin/dmeo.gin does not exist; did you mean gin/demo.gin?",),
        ),
        (("--gin_flie=gin/demo.gin",), ("gin_flie", "Did you mean: gin_file", "see --help")),
        (("--gin_file=gin/demo.gin", "--dry_run=maybe"), ("dry_run", "maybe")),
        (("--gin_file=gin/demo.gin", "word"), ("argument 'word' is not a flag",)),
        (
            ("--gin_file=gin/demo.gin", *bindings("pretrain.batchsize=3")),
            ("'batchsize'", "did you mean pretrain.batch_size?"),
        ),
    )
    def test_rejects_flags(self, flags: tuple[str, ...], parts: tuple[str, ...]) -> None:
        printed = self.rejected(self.call(*flags))
        for part in parts:
            self.assertIn(part, printed)

    @parameterized.parameters(
        (("pretrain.encoder='resnet19'",), "resnet19", "resnet18"),
        (("pretrain.batch_size=15",), "pretrain.batch_size is 15", "at most 14", "images"),
        (("jigsaw.grid=1",), "jigsaw.grid is 1", "2"),
        (("jigsaw.cross_ratio=0.6",), "jigsaw.cross_ratio is 0.6", "0.5"),
        (("jigsaw.patch_size=4",), "jigsaw.patch_size is 4", "1x1 features", "larger patches"),
        (("compute.device='cuda'",), "compute.device is 'cuda'"),
        (("compute.precision='fp16'",), "compute.precision is 'fp16'", "float16"),
        (
            (*FOLDER_OF_IMAGES, "UnlabeledImages.root='nowhere'"),
            "UnlabeledImages.root: nowhere is not a folder",
        ),
        (
            (*FOLDER_OF_IMAGES, "UnlabeledImages.root='empty'"),
            "UnlabeledImages.root: empty contains no images",
        ),
        (("pretrain.learning_rate=-1.0",), "pretrain.learning_rate is -1.0", "0"),
        (("saving.keep_last=0",), "saving.keep_last is 0", "1 or more"),
    )
    def test_rejects_values(self, texts: tuple[str, ...], *parts: str) -> None:
        (self.folder / "empty").mkdir()
        printed = self.rejected(self.demo(*texts))
        for part in parts:
            self.assertIn(part, printed)
        self.assertFalse(self.workdir.exists())

    def test_trains_on_a_folder_and_counts_unreadable_images(self) -> None:
        data = self.folder / "my images"
        data.mkdir()
        for index in range(4):
            Image.new("L", (40, 30), 60 * index).save(data / f"bild ü {index}.png")
        (data / "bild ü 2.png").write_bytes(b"no image")
        printed = self.succeeded(
            self.demo(
                *FOLDER_OF_IMAGES,
                "UnlabeledImages.root='my images'",
                "loading.workers=1",
                "loading.most_unreadable=0.5",
                program=MODULE,
            )
        )
        self.assertIn("bild ü 2.png", printed)
        self.assertIn("1 unreadable images were skipped", printed)

    def test_rejects_a_workdir_that_is_a_file(self) -> None:
        self.workdir.write_text("")
        self.assertIn(str(self.workdir), self.rejected(self.demo()))

    def test_divergence_keeps_earlier_checkpoints(self) -> None:
        self.succeeded(self.demo("schedule.stop_after_steps=1", "pretrain.evaluators=()"))
        before = checkpoint.latest(self.workdir)
        assert before is not None
        rate = "pretrain.learning_rate=1e38"
        done = self.demo(rate, "reporting.log_every=3", "pretrain.evaluators=()")
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, "error: loss is nan, .*at step [23]; lower pretrain.learni")
        self.assertEqual(checkpoint.latest(self.workdir), before)
        report = (self.workdir / "report.md").read_text()
        self.assertRegex(report, "Failed: loss is nan, .*lower pretrain.learning")

    def test_rejects_a_batch_that_ranks_cannot_share(self) -> None:
        done = self.demo("pretrain.batch_size=5", program=TORCHRUN)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("error: pretrain.batch_size is 5", done.stderr)
        # torchrun itself ends with a traceback, which does not contain our module.
        self.assertNotIn('launch.py", line', done.stderr)
        self.assertFalse(self.workdir.exists())


if __name__ == "__main__":
    absltest.main()
