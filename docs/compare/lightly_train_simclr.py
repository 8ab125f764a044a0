"""SimCLR by lightly-train: IMAGES FOLDER EPOCHS BATCH_SIZE WORKERS. Run by compare.py."""

import itertools
import sys

import lightly_train
from torch.optim.optimizer import register_optimizer_step_post_hook

if __name__ == "__main__":
    images, folder = sys.argv[1:3]
    epochs, batch_size, workers = map(int, sys.argv[3:])
    steps = itertools.count(1)

    def report(*_: object) -> None:
        print(f"\nstep {next(steps)}", flush=True)

    register_optimizer_step_post_hook(report)
    lightly_train.pretrain(
        out=folder,
        overwrite=True,
        data=images,
        model="torchvision/resnet18",
        method="simclr",
        epochs=epochs,
        batch_size=batch_size,
        num_workers=workers,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        transform_args={"image_size": (224, 224)},
    )
