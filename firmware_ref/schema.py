"""The parts of the TFLite schema (version 3) that `graph` reads, as data.

Source: tensorflow/lite/schema/schema.fbs. A field is its slot: its place in its table, from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

IDENTIFIER = b"TFL3"
VERSION = 3

MODEL_SUBGRAPHS = 2
MODEL_METADATA = 6
SUBGRAPH_OUTPUTS = 2

# Every field of every table that an interpreter may follow, in the notation of
# `flatbuffer.Table.check`. Options lie under "any": their fields are read by their own layouts.
TABLES: Mapping[str, tuple[str, ...]] = {
    "Model": (
        "4", "[OperatorCode]", "[SubGraph]", "text", "[Buffer]", "[4]", "[Metadata]", "[Signature]",
    ),
    "OperatorCode": ("1", "text", "4", "4"),
    "SubGraph": ("[Tensor]", "[4]", "[4]", "[Operator]", "text", "4"),
    "Tensor": ("[4]", "1", "4", "text", "Quantization", "1", "any", "[4]", "1"),
    "Quantization": ("[4]", "[4]", "[4]", "[8]", "1", "any", "4"),
    "Operator": (
        "4", "[4]", "[4]", "1", "any", "[1]", "1", "[1]", "[4]", "8", "8", "1", "any", "4",
    ),
    "Buffer": ("[1]", "8", "8"),
    "Metadata": ("text", "4"),
    "Signature": ("[TensorMap]", "[TensorMap]", "text", "text", "4"),
    "TensorMap": ("text", "4"),
}  # fmt: skip

TENSOR_TYPES: Mapping[int, str] = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
    12: "uint64",
    15: "uint32",
    16: "uint16",
}

PADDINGS = ("SAME", "VALID")
ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")

CUSTOM = 32

_NAMES = """
ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE
EMBEDDING_LOOKUP FLOOR FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D
LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1
RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM
CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND
SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM
CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE
SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW
ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK
REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR
LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS
WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM
BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG
REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL
CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL
BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD
UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR
RIGHT_SHIFT
"""
BUILTIN_OPERATORS = tuple(_NAMES.split())


@dataclass(frozen=True)
class Option:
    """One field of an operator's options: its slot, its type and the schema's default.

    ``type`` is ``"int"``, ``"byte"``, ``"bool"``, ``"float"``, ``"ints"`` (a vector),
    ``"padding"`` or ``"activation"``.
    """

    slot: int
    type: str
    default: int = 0


@dataclass(frozen=True)
class Options:
    """The options table of an operator: its number in the union, and its fields by name."""

    union: int
    fields: Mapping[str, Option]


_POOL = Options(
    5,
    {
        "padding": Option(0, "padding"),
        "stride_w": Option(1, "int"),
        "stride_h": Option(2, "int"),
        "filter_width": Option(3, "int"),
        "filter_height": Option(4, "int"),
        "fused_activation": Option(5, "activation"),
    },
)

OPTIONS: Mapping[str, Options] = {
    "CONV_2D": Options(
        1,
        {
            "padding": Option(0, "padding"),
            "stride_w": Option(1, "int"),
            "stride_h": Option(2, "int"),
            "fused_activation": Option(3, "activation"),
            "dilation_w_factor": Option(4, "int", 1),
            "dilation_h_factor": Option(5, "int", 1),
        },
    ),
    "DEPTHWISE_CONV_2D": Options(
        2,
        {
            "padding": Option(0, "padding"),
            "stride_w": Option(1, "int"),
            "stride_h": Option(2, "int"),
            "depth_multiplier": Option(3, "int"),
            "fused_activation": Option(4, "activation"),
            "dilation_w_factor": Option(5, "int", 1),
            "dilation_h_factor": Option(6, "int", 1),
        },
    ),
    "AVERAGE_POOL_2D": _POOL,
    "MAX_POOL_2D": _POOL,
    "FULLY_CONNECTED": Options(
        8,
        {
            "fused_activation": Option(0, "activation"),
            "weights_format": Option(1, "byte"),
            "keep_num_dims": Option(2, "bool"),
        },
    ),
    "CONCATENATION": Options(
        10, {"axis": Option(0, "int"), "fused_activation": Option(1, "activation")}
    ),
    "SOFTMAX": Options(9, {"beta": Option(0, "float")}),
    "ADD": Options(11, {"fused_activation": Option(0, "activation")}),
    "RESHAPE": Options(17, {"new_shape": Option(0, "ints")}),
    "MUL": Options(21, {"fused_activation": Option(0, "activation")}),
    "MEAN": Options(27, {"keep_dims": Option(0, "bool")}),
    "SUM": Options(27, {"keep_dims": Option(0, "bool")}),
    "SUB": Options(28, {"fused_activation": Option(0, "activation")}),
    "STRIDED_SLICE": Options(
        32,
        {
            "begin_mask": Option(0, "int"),
            "end_mask": Option(1, "int"),
            "ellipsis_mask": Option(2, "int"),
            "new_axis_mask": Option(3, "int"),
            "shrink_axis_mask": Option(4, "int"),
            "offset": Option(5, "bool"),
        },
    ),
    "DIV": Options(29, {"fused_activation": Option(0, "activation")}),
}
