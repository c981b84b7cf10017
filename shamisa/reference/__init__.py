"""Pure PyTorch of every op: slow, readable, on any device. These definitions are the specification."""
