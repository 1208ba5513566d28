"""EchoUpsample in what is exported: its rewriting, its ONNX functions, its TensorRT plugins."""
