"""Exports models to other runtimes: ONNX Runtime, OpenVINO, ExecuTorch, torch.export and llama.cpp."""
