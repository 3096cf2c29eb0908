// Registers a kernel and notes what it takes and returns. PyTorch's stable ABI passes bare words and looks at no type,
// so kernels built for other schemas than Python declares would read them wrongly: svg_fast/kernels.py compares.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace svg_fast {

// Names as PyTorch's schemas print them.
template <typename T>
inline constexpr const char* kTypeName = nullptr;
template <>
inline constexpr const char* kTypeName<torch::stable::Tensor> = "Tensor";
template <>
inline constexpr const char* kTypeName<std::optional<torch::stable::Tensor>> = "Optional[Tensor]";
template <>
inline constexpr const char* kTypeName<std::vector<torch::stable::Tensor>> = "List[Tensor]";
template <>
inline constexpr const char* kTypeName<int64_t> = "int";
template <>
inline constexpr const char* kTypeName<double> = "float";
template <>
inline constexpr const char* kTypeName<bool> = "bool";
template <>
inline constexpr const char* kTypeName<std::string> = "str";
template <>
inline constexpr const char* kTypeName<StringHandle> = "str";

template <typename... T>
std::string type_names() {
  static_assert(((kTypeName<T> != nullptr) && ...), "a type that schemas of this library do not have");
  std::string text;
  ((text += (text.empty() ? "" : ", ") + std::string(kTypeName<T>)), ...);
  return "(" + text + ")";
}

template <typename T>
struct Results {
  static std::string names() { return type_names<T>(); }
};
template <typename... T>
struct Results<std::tuple<T...>> {
  static std::string names() { return type_names<T...>(); }
};

template <typename R, typename... T>
std::string signature(R (*)(T...)) {
  return type_names<std::remove_cvref_t<T>...>() + " -> " + Results<R>::names();
}

// Name and signature of every kernel.
inline std::vector<std::pair<std::string, std::string>>& signatures() {
  static std::vector<std::pair<std::string, std::string>> noted;
  return noted;
}

}  // namespace svg_fast

// The function bears the name of the op.
#define SVG_KERNEL(library, function)            \
  library.impl(#function, TORCH_BOX(&function)); \
  signatures().emplace_back(#function, signature(&function))
