"""A script of plain PyTorch made a distributed one by the two lines marked new; the third only prints once.

    mpirun -n 4 python examples/02_two_lines.py

Look at the losses: they are the same on 1, 2, 3 or 4 ranks, because each rank gets its part of every batch. With
strategy="zero" each rank also holds only its part of Adam's state.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distloop  # new


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=50, shuffle=True)

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    optimizer, loader = distloop.distribute(model, optimizer, loader, strategy="zero")  # new

    for epoch in range(5):
        for batch, wanted in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), wanted).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            outputs = model(inputs)
        loss = nn.functional.cross_entropy(outputs, targets).item()
        accuracy = (outputs.argmax(-1) == targets).float().mean().item()
        distloop.World.start().say(f"epoch {epoch + 1}  loss {loss:.5f}  accuracy {accuracy:.4f}")  # was: print


if __name__ == "__main__":
    main()
