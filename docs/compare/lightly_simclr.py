"""SimCLR by lightly in a plain loop: IMAGES FOLDER EPOCHS BATCH_SIZE WORKERS. Run by compare.py."""

import itertools
import sys

import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform

if __name__ == "__main__":
    images = sys.argv[1]
    epochs, batch_size, workers = map(int, sys.argv[3:])
    encoder = torchvision.models.resnet18()
    encoder.fc = torch.nn.Identity()
    head = SimCLRProjectionHead(512, 2048, 128)  # As in lightly-train.
    loader = torch.utils.data.DataLoader(
        LightlyDataset(images, transform=SimCLRTransform(input_size=224)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )
    criterion = NTXentLoss(temperature=0.1)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=1e-4)
    steps = itertools.count(1)
    for _ in range(epochs):
        for views, *_ in loader:
            loss = criterion(*head(encoder(torch.cat(views))).chunk(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"step {next(steps)}/{epochs * len(loader)} loss {loss.item():.3f}", flush=True)
