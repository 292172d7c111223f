"""One call trains on every rank and gives back a model that predicts.

    mpirun -n 4 python examples/01_one_call.py

Look at the start line (ranks, threads, MPI), the table at the end, and the predictions: on any number of ranks the
same rows are learned in the same order, so only the last digits of the figures change.
"""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

import distloop


def main() -> None:
    images, labels = load_digits(return_X_y=True)  # 1,797 real scans of handwritten digits, 8x8
    inputs, targets = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    held_out = torch.arange(len(inputs)) % 5 == 0
    training = TensorDataset(inputs[~held_out], targets[~held_out])
    validation = TensorDataset(inputs[held_out], targets[held_out])

    trained = distloop.train(training, validation, epochs=8)

    unseen, answers = validation[:12]
    say = distloop.World.start().say  # a line of rank 0, rather than one of each rank
    say(f"written by hand: {answers.tolist()}")
    say(f"predicted:       {trained.predict(unseen).tolist()}")
    say(f"accuracy {trained.summary['validation']['accuracy']:.3f} on rows that were not trained on")


if __name__ == "__main__":
    main()
