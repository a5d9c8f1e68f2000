"""Converts a foreign model: from a torch module, a `.pt2` archive or an ONNX file to one checked base graph."""
