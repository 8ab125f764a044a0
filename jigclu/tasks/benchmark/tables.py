"""Tables of what was measured: pure functions of numbers."""

from collections.abc import Sequence

from jigclu.tasks.benchmark.copies import Copies
from jigclu.tasks.benchmark.end_to_end import EndToEnd
from jigclu.tasks.benchmark.exchange import Exchange, Received
from jigclu.tasks.benchmark.growth import LossCost
from jigclu.tasks.benchmark.micro_batches import MicroBatchCost
from jigclu.tasks.benchmark.pieces import PieceCost
from jigclu.tasks.benchmark.reading import SHORTER_SIDE, ReadingTimes
from jigclu.tasks.benchmark.report import Cell, Table, format_cell
from jigclu.tasks.benchmark.short_training import ShortTraining
from jigclu.tasks.benchmark.start import StartTimes
from jigclu.tasks.benchmark.steps import StepCost, StepCosts
from jigclu.tasks.benchmark.timing import Cost, Seconds
from jigclu.tasks.benchmark.workload import Workload


def reading_table(workload: Workload, times: ReadingTimes) -> Table:
    """Returns a row per pipeline; images per second of processor time."""
    rates = {name: times.images / seconds.median for name, seconds in times.seconds.items()}
    published, files = rates["published, PIL"], rates["files"]
    return Table(
        title="Reading images, one core",
        columns=(
            *("pipeline", "images/s", "slowest to fastest"),
            *("relative to published", "relative to files"),
        ),
        rows=[
            (
                name,
                rate,
                _rate_range(times.seconds[name], times.images),
                rate / published,
                rate / files,
            )
            for name, rate in rates.items()
        ],
        note=(
            f"{times.images} images, each to {workload.grid**2} patches of "
            f"{workload.patch_size} pixels, in seconds of processor time. The published pipeline "
            "also changes colors. JigClu does so on the training device, in large batches; the "
            'row "files, augmented on the same core" shows its cost on one core. Packs have a '
            f"shorter side of {SHORTER_SIDE} pixels."
        ),
        panels=(("images/s",),),
    )


def step_table(workload: Workload, costs: StepCosts) -> Table:
    """Returns a row per step."""
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in costs.matmul_rates.items())
    return Table(
        title="Training step",
        columns=(
            *("step", "images/s", "slowest to fastest", "relative to the first"),
            *("time relative to supervised", "memory, MB", "% of the matrix product's rate"),
        ),
        rows=[_step_row(workload, costs, step) for step in costs.steps],
        note=(
            f"{workload.encoder}, {workload.batch_size} images (montages) of "
            f"{workload.montage_size} pixels. Memory is what a step needs beyond parameters and "
            "momentum. The last column compares the arithmetic of the network, forward and "
            f"backward, with a large matrix product of the same precision: {rates} TFLOP/s. "
            "JigClu's steps augment their patches; the published step gets augmented patches."
        ),
        panels=(("images/s",), ("memory, MB",)),
    )


def _step_row(workload: Workload, costs: StepCosts, step: StepCost) -> tuple[Cell, ...]:
    seconds = step.cost.seconds
    twin = costs.supervised_twin(step)
    product_rate = costs.matmul_rates[step.variant.arithmetic.precision]
    return (
        step_name(step, costs.tf32),
        workload.batch_size / seconds.median,
        _rate_range(seconds, workload.batch_size),
        costs.steps[0].cost.seconds.median / seconds.median,
        None if twin is None else seconds.median / twin.cost.seconds.median,
        _megabytes(step.cost.memory),
        100 * step.operations / seconds.median / product_rate,
    )


def step_name(step: StepCost, tf32: bool) -> str:
    """Returns the name of a step, which says if float32 is TF32, torch's default on a GPU."""
    name = step.kind if step.kind == "published" else f"{step.kind}, {step.variant}"
    if not tf32:
        return name
    if step.kind == "published":
        return f"{name}, float32 (TF32 convolutions)"
    return name.replace("float32", "float32 (TF32 convolutions)")


def pieces_table(workload: Workload, pieces: Sequence[PieceCost]) -> Table:
    """Returns a row per function."""
    return Table(
        title="Pieces of a step",
        columns=(
            *("piece", "eager, ms", "compiled, ms", "eager / compiled"),
            *("images/s, compiled", "memory eager, MB", "memory compiled, MB"),
        ),
        rows=[_piece_row(workload, piece) for piece in pieces],
        note=(
            f"{workload.encoder}, {workload.batch_size} images. The network and the clustering "
            "loss include their gradients; the update excludes the norm of the gradients and the "
            "copy into the parameters. A compiled step fuses all pieces except the shuffle and "
            "the update."
        ),
        panels=(("eager, ms",), ("compiled, ms",)),
    )


def _piece_row(workload: Workload, piece: PieceCost) -> tuple[Cell, ...]:
    eager, compiled = piece.eager.seconds.median, piece.compiled.seconds.median
    return (
        piece.name,
        1e3 * eager,
        1e3 * compiled,
        eager / compiled,
        workload.batch_size / compiled,
        _megabytes(piece.eager.memory),
        _megabytes(piece.compiled.memory),
    )


def end_to_end_table(workload: Workload, run: EndToEnd) -> Table:
    """Returns a row each for training, for its steps without reading, and for reading."""
    seconds, waited = run.training
    images = workload.batch_size * run.steps
    return Table(
        title="End to end",
        columns=("what", "images/s", "host waits for data, %", "time beyond the steps, %"),
        rows=[
            (
                "files to parameters",
                images / seconds,
                100 * waited / seconds,
                100 * max(0.0, 1 - run.steps * run.step / seconds),
            ),
            ("steps only, on noise", workload.batch_size / run.step, None, None),
            ("reading only", images / run.reading.seconds, None, None),
        ],
        note=(
            f"{workload.encoder}, {workload.batch_size} images, {_mode(workload)}; "
            f"worker processes: {workload.workers}; one run of {run.steps} steps after "
            f"{run.warm_up} that do not count. On a GPU, the host may wait for data while the "
            "device still computes: the last column shows the cost of reading."
        ),
        panels=(("images/s",),),
    )


def copies_table(workload: Workload, copies: Copies) -> Table:
    """Returns a row per way to copy patches to the device."""
    seconds = {
        "no copies": copies.on_device,
        "copied during the step before": copies.ahead,
        "copied before each step": copies.before,
    }
    return Table(
        title="Copies to the device",
        columns=("batches", "images/s", "device waits for data, %"),
        rows=[
            (
                name,
                workload.batch_size / taken,
                100 * max(0.0, 1 - copies.on_device / taken),
            )
            for name, taken in seconds.items()
        ],
        note=(
            f"{workload.encoder}, {workload.batch_size} images, {_mode(workload)}; "
            f"{copies.size / 1e6:.0f} MB per step from page-locked memory. The device waits for "
            "the time that a step takes longer than one without copies. Training uses the second "
            "row."
        ),
        panels=(("images/s",),),
    )


def loss_table(workload: Workload, losses: Sequence[LossCost], longest: float) -> Table:
    """Returns a row per number of patches; `longest` is that of `measure_loss`, in seconds."""
    return Table(
        title="Clustering loss",
        columns=("patches", "s", "MB", "s, published", "MB, published"),
        rows=[
            (float(loss.patches), *_cost_cells(loss.ours), *_cost_cells(loss.published))
            for loss in losses
        ],
        note=(
            f"Value and gradient, float32, {workload.embedding_channels} channels, eager. Empty "
            f"cells: expected to take longer than {longest:g} s, or not to fit into memory."
        ),
        panels=(("s", "s, published"), ("MB", "MB, published")),
    )


def exchange_table(workload: Workload, exchanges: Sequence[Exchange]) -> Table:
    """Returns a row per number of ranks."""
    return Table(
        title="Bytes that a rank receives per step",
        columns=(
            *("ranks", *(f"{kind}, MB" for kind in Received._fields), "all, MB"),
            *("published: patches, MB", "published: all, MB"),
        ),
        rows=[_exchange_row(exchange) for exchange in exchanges],
        note=(
            f"Computed, not measured, for {workload.batch_size} images of all ranks together, "
            "without micro_batch_size. The published code sends every patch to every rank, in "
            "float32; everything else is assumed to be equal."
        ),
        panels=(("patches, MB", "published: patches, MB"),),
    )


def _exchange_row(exchange: Exchange) -> tuple[Cell, ...]:
    received, published = exchange.received, exchange.published_patches
    total = sum(received)
    counts = (*received, total, published, total - received.patches + published)
    return (float(exchange.ranks), *(count / 1e6 for count in counts))


def start_table(times: StartTimes) -> Table:
    """Returns a row per kind of start."""
    seconds = {
        "eager": times.eager,
        "compiled, empty cache": times.empty_cache,
        "compiled, warm cache": times.warm_cache,
    }
    return Table(
        title="Time to the first step",
        columns=("start", "s", "relative to an empty cache"),
        rows=[(name, taken, taken / times.empty_cache) for name, taken in seconds.items()],
        note="From the start of the process, imports included, to the end of its first step, "
        "on noise: nothing is read.",
        panels=(("s",),),
    )


def micro_batch_table(workload: Workload, costs: Sequence[MicroBatchCost]) -> Table:
    """Returns a row per precision and micro-batch size."""
    return Table(
        title=f"Micro-batches of a batch of {workload.batch_size}",
        columns=("step", "images/s", "memory, MB"),
        rows=[_micro_batch_row(workload, step) for step in costs],
        note=(
            f"{workload.network}, {_compilation(workload)}. Memory is the peak of a step beyond "
            "parameters and momentum. Empty cells: out of memory."
        ),
        panels=(("memory, MB",),),
    )


def _micro_batch_row(workload: Workload, step: MicroBatchCost) -> tuple[Cell, ...]:
    size = "whole batch" if step.size is None else f"micro-batches of {step.size}"
    seconds, memory = _cost_cells(step.cost)
    rate = None if seconds is None else workload.batch_size / seconds
    return f"{step.precision}, {size}", rate, memory


def training_table(workload: Workload, training: ShortTraining) -> Table:
    """Returns a row per figure."""
    return Table(
        title="Training on generated images",
        columns=("figure", "value"),
        rows=[
            ("steps", float(training.steps)),
            ("epochs", training.steps / workload.steps_per_epoch),
            ("seconds", training.seconds),
            ("images/s", training.steps * workload.batch_size / training.seconds),
            ("host waits for data, %", 100 * training.waited / training.seconds),
            ("loss of the last step", training.loss),
            ("kNN accuracy before, %", 100 * training.accuracy_before),
            ("kNN accuracy after, %", 100 * training.accuracy_after),
            ("kNN accuracy of chance, %", 100 * training.chance),
        ],
        note=(
            f"{workload.encoder}, {workload.batch_size} images per step, montages of "
            f"{workload.montage_size} pixels, {_mode(workload)}, "
            f"worker processes: {workload.workers}, learning rate {workload.learning_rate:g}."
        ),
        panels=(),
    )


def compilation_table(workload: Workload, seconds: dict[str, float]) -> Table:
    """Returns a row per step, by name."""
    return Table(
        title=f"Compilation, {workload.network}",
        columns=("step", "s"),
        rows=list(seconds.items()),
        note="To the end of the first step, while other parts run on the same machine.",
        panels=(),
    )


def _mode(workload: Workload) -> str:
    return f"{workload.precision}, {_compilation(workload)}"


def _compilation(workload: Workload) -> str:
    return "compiled" if workload.compiled else "eager"


def _rate_range(seconds: Seconds, images: int) -> str:
    """Returns the least and the most images per second of an action on so many."""
    return f"{format_cell(images / seconds.most)} to {format_cell(images / seconds.least)}"


def _cost_cells(cost: Cost | None) -> tuple[float | None, float | None]:
    """Returns median seconds and MB."""
    return (None, None) if cost is None else (cost.seconds.median, _megabytes(cost.memory))


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6
