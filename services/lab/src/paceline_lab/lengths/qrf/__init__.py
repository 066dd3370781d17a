"""Quantile regression forest: fitted with scikit-learn, answered by one ONNX graph."""
