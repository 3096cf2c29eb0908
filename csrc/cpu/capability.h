// Which instruction set the vector kernels run on. Every file in vector/ is compiled once for each of them, in a
// namespace of its own, and the choice is made when an op is called.
#pragma once

namespace svg_fast {

enum class Capability { kDefault, kAVX2, kAVX512 };

// The widest set that this CPU and this build have, or the one that SVG_FAST_CPU_CAPABILITY names
// (default, avx2, avx512). Throws std::invalid_argument where that is not to be had.
Capability capability();

const char* capability_name(Capability capability);

}  // namespace svg_fast

// Declares `name()`, the kernels of one op: a constant table of type `Type` that each vector file defines as
// `const Type name{...}` in the namespace SVG_ISA. Constant, so that loading runs no code of a set the CPU lacks.
#define SVG_DECLARE_TABLE(isa, Type, name) \
  namespace isa {                          \
  extern const Type name;                  \
  }

#ifdef SVG_X86
#define SVG_DECLARE_KERNELS(Type, name)                         \
  SVG_DECLARE_TABLE(isa_default, Type, name)                    \
  SVG_DECLARE_TABLE(isa_avx2, Type, name)                       \
  SVG_DECLARE_TABLE(isa_avx512, Type, name)                     \
  inline const Type& name() {                                   \
    switch (capability()) {                                     \
      case Capability::kAVX512:                                 \
        return isa_avx512::name;                                \
      case Capability::kAVX2:                                   \
        return isa_avx2::name;                                  \
      default:                                                  \
        return isa_default::name;                               \
    }                                                           \
  }
#else
#define SVG_DECLARE_KERNELS(Type, name)      \
  SVG_DECLARE_TABLE(isa_default, Type, name) \
  inline const Type& name() { return isa_default::name; }
#endif
