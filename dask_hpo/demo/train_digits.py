"""The demo's training script: a small network on scikit-learn's digits, 1,797 images of 8 x 8.

Run it by hand, too: python train_digits.py --learning_rate 0.1 --batch_size 32 --max_epochs 4
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from dask_hpo import Reporter


def load_data(train_share: float = 0.6) -> tuple[torch.Tensor, ...]:
    """Return images and labels for training, images and labels for validation: one fixed split."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target)[order]
    n_train = int(train_share * len(labels))
    return images[:n_train], labels[:n_train], images[n_train:], labels[n_train:]


def train(learning_rate: float, batch_size: int, max_epochs: int) -> None:
    """Train by stochastic gradient descent and report the validation error of each epoch."""
    report = Reporter()
    torch.manual_seed(0)
    images, labels, validation_images, validation_labels = load_data()
    model = nn.Sequential(
        nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    loss_of = nn.CrossEntropyLoss()
    for epoch in range(1, max_epochs + 1):
        for batch in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad()
            loss = loss_of(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            wrong = model(validation_images).argmax(1) != validation_labels
        report(epoch=epoch, validation_error=wrong.float().mean(), training_loss=loss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning_rate", type=float, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--max_epochs", type=int, default=16)
    train(**vars(parser.parse_args()))
