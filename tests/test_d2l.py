"""d2l.ai's own objective and searcher, unchanged, beside the old packages that d2l 1.0.3 pins."""

from __future__ import annotations

import sys

import cloudpickle
import pytest

pytest.importorskip("d2l", reason="d2l 1.0.3 needs the old packages of tests/requirements-d2l.txt")

from test_run import tuner

from dask_hpo import uniform

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def hpo_objective_lenet_on_digits(learning_rate, batch_size, max_epochs):
    """Train d2l's LeNet as the chapter does, on scikit-learn's digits in Fashion-MNIST's shape."""
    import torch
    from d2l import torch as d2l
    from sklearn.datasets import load_digits

    class Digits(d2l.DataModule):
        def __init__(self, batch_size):
            super().__init__()
            self.save_hyperparameters()
            digits = load_digits()
            images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
            self.images = torch.nn.functional.interpolate(images, size=(28, 28))[:256]
            self.labels = torch.tensor(digits.target)[:256]

        def get_dataloader(self, train):
            rows = slice(0, 192) if train else slice(192, None)
            return self.get_tensorloader((self.images, self.labels), train, rows)

    model = d2l.LeNet(lr=learning_rate, num_classes=10)
    model.board.display = False
    trainer = d2l.HPOTrainer(max_epochs=max_epochs, num_gpus=0)
    data = Digits(batch_size=int(batch_size))
    model.apply_init([next(iter(data.get_dataloader(True)))[0]], d2l.init_cnn)
    trainer.fit(model=model, data=data)
    return trainer.validation_error()


def test_the_chapters_objective_and_searcher(client, tmp_path):
    from d2l import torch as d2l
    from scipy import stats

    space = {
        "learning_rate": stats.loguniform(1e-2, 1),
        "batch_size": stats.randint(32, 128),
    }
    searcher = d2l.RandomSearcher(space, initial_config={"learning_rate": 0.1, "batch_size": 64})
    experiment = tuner(
        hpo_objective_lenet_on_digits,
        client,
        tmp_path,
        space={**space, "max_epochs": 1},
        searcher=searcher,
        metric="validation_error",
        limits={"max_num_trials_started": 3},
    ).run()
    trials = experiment.trials
    assert set(trials["state"]) == {"completed"}, list(trials["failure"])
    assert trials["config_learning_rate"][0] == 0.1
    assert trials["value"].between(0, 1).all()


def test_the_package_runs_beside_the_old_numpy(client, tmp_path):
    import numpy as np
    import pandas as pd

    assert np.__version__ == "1.23.5"
    assert pd.__version__ == "2.0.3"
    experiment = tuner(lambda x: x, client, tmp_path, space={"x": uniform(0, 1)}).run()
    assert len(experiment.trials) == 8
