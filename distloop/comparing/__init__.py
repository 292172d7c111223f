"""Ways of training, side by side: the same steps from the same weights, in rounds that take turns."""
