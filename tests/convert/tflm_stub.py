"""The part of TFLite Micro's interface that a bundle uses, in front of the C99 network.

With it self-test and classifier of the ``tflite-micro`` target run where TFLite Micro is not.
"""

from __future__ import annotations

from pathlib import Path

from convert.bundle.contents import Bundle
from convert.bundle.tflite_micro import METHODS

MICRO = "tensorflow/lite/micro"
HEADERS = {
    f"{MICRO}/micro_mutable_op_resolver.h": f"""
#pragma once
enum TfLiteStatus {{ kTfLiteOk, kTfLiteError }};
namespace tflite {{
class MicroOpResolver {{}};
template <unsigned int count> class MicroMutableOpResolver : public MicroOpResolver {{
 public:
{"".join(f"  TfLiteStatus {method}() {{ return add(); }}{chr(10)}" for method in METHODS.values())}
 private:
  TfLiteStatus add() {{ return ++added_ <= count ? kTfLiteOk : kTfLiteError; }}
  unsigned int added_ = 0;
}};
}}
""",
    f"{MICRO}/micro_interpreter.h": """
#pragma once
#include <cstddef>
#include <cstdint>
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"
struct TfLiteTensor { union { int8_t *int8; } data; size_t bytes; };
namespace tflite {
class MicroInterpreter {
 public:
  MicroInterpreter(const Model *, const MicroOpResolver &, uint8_t *, size_t);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor *input(size_t);
  TfLiteTensor *output(size_t);
};
}
""",
    "tensorflow/lite/schema/schema_generated.h": """
#pragma once
namespace tflite {
struct Model;
const Model *GetModel(const void *);
}
""",
}
# Invoke fails where the environment says so; the arena is too small below what was measured.
RUNS = """
#include <cstdlib>
#include "model_config.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tinyscene_model.h"
namespace {
tinyscene_memory memory;
int8_t logits[TINYSCENE_OUTPUTS];
TfLiteTensor in, out;
bool enough;
}
namespace tflite {
const Model *GetModel(const void *data) { return static_cast<const Model *>(data); }
MicroInterpreter::MicroInterpreter(const Model *, const MicroOpResolver &, uint8_t *arena,
                                   size_t bytes) {
  enough = bytes >= TINYSCENE_ARENA_LEAST_BYTES && reinterpret_cast<uintptr_t>(arena) % 16 == 0;
  in.data.int8 = tinyscene_input(&memory);
  out.data.int8 = logits;
}
TfLiteStatus MicroInterpreter::AllocateTensors() { return enough ? kTfLiteOk : kTfLiteError; }
TfLiteStatus MicroInterpreter::Invoke() {
  if (std::getenv("INVOKE_FAILS")) return kTfLiteError;
  tinyscene_run(&memory, logits);
  return kTfLiteOk;
}
TfLiteTensor *MicroInterpreter::input(size_t) { return &in; }
TfLiteTensor *MicroInterpreter::output(size_t) { return &out; }
}
"""
NETWORK = ("tinyscene_model.c", "tinyscene_model.h", "tinyscene_kernels.h")


def write_stub(c99: Bundle, folder: Path) -> None:
    """The headers, and ``runs.cc`` and the network beside them, into ``folder``."""
    texts = {**HEADERS, "runs.cc": RUNS}
    texts |= {name: c99.files[f"src/{name}"].decode() for name in NETWORK}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
