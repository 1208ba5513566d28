"""PyTorch to typed ONNX, to engines, with a parity gate. Imports nothing heavy until used."""
