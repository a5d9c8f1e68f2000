"""An ONNX file of another framework: channels last, bytes as input, probabilities as output."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from variegate import export

rng = np.random.default_rng(0)
weights = numpy_helper.from_array(rng.normal(0, 0.01, (16 * 16 * 3, 5)).astype(np.float32), "w")
nodes = [
    helper.make_node("Flatten", ["image"], ["flat"]),
    helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
]
image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 16, 16, 3])
scores = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 5])
graph = helper.make_graph(nodes, "channels_last", [image], [scores], [weights])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "model.onnx")

# Devices pass (C, H, W) whatever the model's own layout; without a validation set the rewriter is taken unseen.
release = export.prepare(
    "model.onnx", spec=export.InputSpec(layout="NHWC", value_range="byte"), rewriter="permutation", name="last"
)
release.save(Path("release"))
print("release of", release.template.contract.classes, "classes for frames", release.template.shape)
