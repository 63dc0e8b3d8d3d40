"""ONNX models of a few hundred bytes that would take gigabytes or minutes, as text; each names the node to blame."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import parser

_HEADER = '<ir_version: 10, opset_import: ["": 21]>'


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBomb:
    """A graph over the input `x`, and the operator that must be named when it is refused."""

    body: str
    kind: str
    inputs: str = "float[1, 1, 4, 4] x"

    def model(self) -> onnx.ModelProto:
        """Return the graph as a model."""
        return parser.parse_model(
            f"{_HEADER} g ({self.inputs}) => (float[...] y) {{ {self.body} }}".replace("[...]", "")
        )


def _doubled(times: int) -> str:
    steps = "".join(f"v{i + 1} = Concat <axis = 3> (v{i}, v{i}) " for i in range(times))
    return f"v0 = Relu (x) {steps} y = Relu (v{times})"


def _doubled_constant(times: int) -> str:
    start = "n = Constant <value_ints = [4096, 2]> () v0 = ConstantOfShape (n) "
    steps = "".join(f"v{i + 1} = Concat <axis = 0> (v{i}, v{i}) " for i in range(times))
    return f"{start}{steps} s = ReduceSum (v{times}) y = Add (x, s)"


def _sized(call: str, *numbers: str) -> str:
    """A node over whole numbers that are constants of the graph: `n0`, `n1`, ..."""
    constants = "".join(f"n{i} = Constant <value_ints = [{text}]> () " for i, text in enumerate(numbers))
    scalars = "".join(f"k{i} = Constant <value_int = {text}> () " for i, text in enumerate(numbers) if "," not in text)
    return f"{constants}{scalars} y = {call}"


_HUGE = str(1 << 31)

BOMBS: dict[str, SizeBomb] = {
    "concat doubling": SizeBomb(body=_doubled(40), kind="Concat"),
    "concat doubling of constants": SizeBomb(body=_doubled_constant(30), kind="Concat"),
    "pad": SizeBomb(body=_sized("Pad (x, n0)", f"0, 0, {1 << 20}, {1 << 20}, 0, 0, 0, 0"), kind="Pad"),
    "conv pads": SizeBomb(
        body=f"w = Constant <value = float[1, 1, 1, 1] {{1}}> () y = Conv <pads = [{1 << 20}, {1 << 20}, 0, 0]> (x, w)",
        kind="Conv",
    ),
    "conv stride hides pads": SizeBomb(
        body=f"w = Constant <value = float[1, 1, 1, 1] {{1}}> () "
        f"y = Conv <pads = [{1 << 20}, {1 << 20}, 0, 0], strides = [{1 << 20}, {1 << 20}]> (x, w)",
        kind="Conv",
    ),
    "conv transpose": SizeBomb(
        body="w = Constant <value = float[1, 1, 1, 1] {1}> () "
        f"y = ConvTranspose <strides = [{1 << 20}, {1 << 20}]> (x, w)",
        kind="ConvTranspose",
    ),
    "average pool kernel": SizeBomb(
        body=f'y = AveragePool <kernel_shape = [{_HUGE}, {_HUGE}], auto_pad = "SAME_UPPER", count_include_pad = 1> (x)',
        kind="AveragePool",
    ),
    "max pool kernel": SizeBomb(
        body=f'y = MaxPool <kernel_shape = [{_HUGE}, 1], auto_pad = "SAME_UPPER"> (x)', kind="MaxPool"
    ),
    "max pool pads": SizeBomb(
        body=f"y = MaxPool <kernel_shape = [{1 << 20}, {1 << 20}], "
        f"pads = [{1 << 19}, {1 << 19}, {1 << 19}, {1 << 19}]> (x)",
        kind="MaxPool",
    ),
    "lp pool kernel": SizeBomb(
        body=f'y = LpPool <kernel_shape = [{_HUGE}, {_HUGE}], auto_pad = "SAME_UPPER"> (x)', kind="LpPool"
    ),
    "tile": SizeBomb(body=_sized("Tile (x, n0)", f"1, 1, {1 << 20}, {1 << 20}"), kind="Tile"),
    "tile of constants": SizeBomb(body=_sized("Tile (n1, n0)", f"{1 << 34}", "7"), kind="Tile", inputs="float[1] x"),
    "expand": SizeBomb(body=_sized("Expand (x, n0)", f"{1 << 20}, {1 << 20}, 4, 4"), kind="Expand"),
    "constant of shape": SizeBomb(body=_sized("ConstantOfShape (n0)", f"{_HUGE}, 2"), kind="ConstantOfShape"),
    "range": SizeBomb(body=_sized("Range (k0, k1, k2)", "0", str(1 << 40), "1"), kind="Range"),
    "one hot": SizeBomb(body=_sized("OneHot (n0, k1, n2)", "1, 2, 3", str(1 << 40), "0, 1"), kind="OneHot"),
    "hann window": SizeBomb(body=_sized("HannWindow (k0)", str(1 << 34)), kind="HannWindow"),
    "hamming window": SizeBomb(body=_sized("HammingWindow (k0)", str(1 << 34)), kind="HammingWindow"),
    "blackman window": SizeBomb(body=_sized("BlackmanWindow (k0)", str(1 << 34)), kind="BlackmanWindow"),
    "mel weights": SizeBomb(
        body="low = Constant <value_float = 0.0> () high = Constant <value_float = 8000.0> () "
        + _sized("MelWeightMatrix (k0, k1, k2, low, high)", str(1 << 20), str(1 << 20), "16000"),
        kind="MelWeightMatrix",
    ),
    "eye": SizeBomb(
        body=_sized("EyeLike (c)", "0").replace(
            "y =",
            f"s = Constant <value_ints = [{1 << 18}, {1 << 18}]> () "
            "z = Constant <value = float[1, 1] {0}> () c = Expand (z, s) y =",
        ),
        kind="Expand",
    ),
    "resize": SizeBomb(
        body="e = Constant <value_floats = [1.0, 1.0, 1000000.0, 1000000.0]> () y = Resize (x, , e)", kind="Resize"
    ),
    "resize to sizes": SizeBomb(body=_sized("Resize (x, , , n0)", f"1, 1, {1 << 20}, {1 << 20}"), kind="Resize"),
    "centre crop or pad": SizeBomb(
        body=_sized("CenterCropPad <axes = [2, 3]> (x, n0)", f"{1 << 20}, {1 << 20}"), kind="CenterCropPad"
    ),
    "affine grid": SizeBomb(
        body="t = Constant <value = float[1, 2, 3] {1,0,0,0,1,0}> () "
        + _sized("AffineGrid (t, n0)", f"1, 1, {1 << 20}, {1 << 20}"),
        kind="AffineGrid",
    ),
    "dft": SizeBomb(
        body=f"s = Constant <value_int = {1 << 34}> () a = Constant <value_int = 2> () y = DFT (x, s, a)",
        kind="DFT",
        inputs="float[1, 4, 4, 1] x",
    ),
    "unpool": SizeBomb(
        body=_sized("MaxUnpool <kernel_shape = [1, 1]> (x, i, n0)", f"1, 1, {1 << 20}, {1 << 20}"),
        kind="MaxUnpool",
        inputs="float[1, 1, 4, 4] x, int64[1, 1, 4, 4] i",
    ),
    "col2im": SizeBomb(
        body=_sized("Col2Im (x, n0, n1)", f"{1 << 20}, {1 << 20}", "1, 1"), kind="Col2Im", inputs="float[1, 1, 4] x"
    ),
    "outer product": SizeBomb(
        body=_sized("Add (c, d)", f"{1 << 20}, 1", f"1, {1 << 20}").replace(
            "y =", "c = ConstantOfShape (n0) d = ConstantOfShape (n1) y ="
        ),
        kind="Add",
    ),
    "matrix product": SizeBomb(
        body=_sized("MatMul (c, d)", f"{1 << 20}, 1", f"1, {1 << 20}").replace(
            "y =", "c = ConstantOfShape (n0) d = ConstantOfShape (n1) y ="
        ),
        kind="MatMul",
    ),
    "einsum": SizeBomb(
        body=_sized('Einsum <equation = "a,b,c->abc"> (c, c, c)', str(1 << 14)).replace(
            "y =", "c = ConstantOfShape (n0) y ="
        ),
        kind="Einsum",
    ),
    "gather": SizeBomb(
        body=_sized("Gather (c, i)", f"4, {1 << 20}", str(1 << 20)).replace(
            "y =", "c = ConstantOfShape (n0) j = ConstantOfShape (n1) i = Cast <to = 7> (j) y ="
        ),
        kind="Gather",
    ),
    "random": SizeBomb(body=f"y = RandomNormal <shape = [{1 << 20}, {1 << 20}]> ()", kind="RandomNormal"),
    "upsample in a loop": SizeBomb(
        body="n = Constant <value_int = 64> () t = Constant <value = bool {1}> () y = Loop (n, t, x) <body = b "
        "(int64 i, bool go, float[1, 1, 4, N] v) => (bool more, float[1, 1, 4, M] w) "
        "{ more = Identity (go) w = Concat <axis = 3> (v, v) }>",
        kind="Concat",
    ),
}
