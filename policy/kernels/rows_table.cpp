// Picks the instruction set of the row functions, and of fixed-point products, when the program runs.
#include "fixed.h"
#include "rows.h"

namespace arriero {

#define ARRIERO_TABLES(isa)              \
  namespace isa {                        \
  extern const Rows<float> f32_rows;     \
  extern const Rows<bf16> bf16_rows;     \
  extern const FlatRows flat;            \
  }

ARRIERO_TABLES(baseline)
#ifdef ARRIERO_X86
ARRIERO_TABLES(avx2)
ARRIERO_TABLES(avx512)
ARRIERO_TABLES(avx512bf16)
#define ARRIERO_PICK(table)                                                                            \
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&                        \
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {                       \
    return __builtin_cpu_supports("avx512bf16") ? &avx512bf16::table : &avx512::table;                  \
  }                                                                                                    \
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2::table;
#else
#define ARRIERO_PICK(table)
#endif

template <>
const Rows<float>& rows<float>() {
  static const Rows<float>* const best = []() -> const Rows<float>* { ARRIERO_PICK(f32_rows) return &baseline::f32_rows; }();
  return *best;
}

template <>
const Rows<bf16>& rows<bf16>() {
  static const Rows<bf16>* const best = []() -> const Rows<bf16>* { ARRIERO_PICK(bf16_rows) return &baseline::bf16_rows; }();
  return *best;
}

const FlatRows& flat_rows() {
  static const FlatRows* const best = []() -> const FlatRows* { ARRIERO_PICK(flat) return &baseline::flat; }();
  return *best;
}

#ifdef ARRIERO_X86
extern const FixedPoint vnni;
#endif

const FixedPoint* fixed_point() {
#ifdef ARRIERO_X86
  static const bool has = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (has) return &vnni;
#endif
  return nullptr;
}

}  // namespace arriero
