"""`Gemm` as `MatMul` and `Add`: exporters write linear layers as `Gemm`, which quantisers of weights pass over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx


def split_gemms(model: onnx.ModelProto, *, only_scaled: bool = False) -> int:
    """Replace each `Gemm` whose second input is a float32 constant; return how many. The numbers stay the same.

    A transposed or scaled constant is stored that way, so that no node is added for it. `only_scaled` leaves those
    alone whose `alpha` and `beta` are 1.
    """
    import onnx

    users = _count_users(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    fed = {value.name for value in model.graph.input}
    replaced = 0
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Gemm" and len(node.input) > 1 else None
        options = _options(node)
        is_plain = options["alpha"] == 1.0 and options["beta"] == 1.0
        is_float = weight is not None and weight.data_type == onnx.TensorProto.FLOAT
        if weight is None or weight.name in fed or not is_float or options["transA"] or (only_scaled and is_plain):
            nodes.append(node)
            continue
        nodes += _split(model, node, weight, options, is_shared=users[weight.name] > 1)
        replaced += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused(model)
    return replaced


def _split(
    model: onnx.ModelProto, node: onnx.NodeProto, weight: onnx.TensorProto, options: dict[str, Any], *, is_shared: bool
) -> list[onnx.NodeProto]:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    array = numpy_helper.to_array(weight)
    changed = np.ascontiguousarray(array.T if options["transB"] else array) * np.float32(options["alpha"])
    name = weight.name
    if options["transB"] or options["alpha"] != 1.0:
        if is_shared:
            name = f"{weight.name}.{node.name or node.output[0]}"
            model.graph.initializer.append(numpy_helper.from_array(changed, name))
        else:
            weight.CopyFrom(numpy_helper.from_array(changed, name))
            for value in [value for value in model.graph.value_info if value.name == name]:
                model.graph.value_info.remove(value)  # it states the old shape
    label = node.name or node.output[0]
    bias = node.input[2] if len(node.input) > 2 else ""
    product = f"{node.output[0]}.product" if bias else node.output[0]
    made = [onnx.helper.make_node("MatMul", [node.input[0], name], [product], name=f"{label}.matmul")]
    if not bias:
        return made
    if options["beta"] != 1.0:
        scale = f"{label}.beta"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(options["beta"], np.float32), scale))
        made.append(onnx.helper.make_node("Mul", [bias, scale], [f"{label}.scaled"], name=f"{label}.scale"))
        bias = f"{label}.scaled"
    made.append(onnx.helper.make_node("Add", [product, bias], [node.output[0]], name=f"{label}.add"))
    return made


def _options(node: onnx.NodeProto) -> dict[str, Any]:
    found: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    for attribute in node.attribute:
        if attribute.name in found:
            found[attribute.name] = attribute.f if attribute.name in ("alpha", "beta") else attribute.i
    return found


def _count_users(model: onnx.ModelProto) -> dict[str, int]:
    from collections import Counter

    from noa_conversion.optimise.onnx_files import walk_graphs

    used = Counter(name for graph in walk_graphs(model.graph) for node in graph.node for name in node.input)
    used.update(value.name for value in model.graph.output)
    return used


def _drop_unused(model: onnx.ModelProto) -> None:
    used = _count_users(model)
    for tensor in [tensor for tensor in model.graph.initializer if not used.get(tensor.name)]:
        model.graph.initializer.remove(tensor)
