// What every device's host function checks of a stack of LSTM cells. L layers, B batch, H hidden units, I inputs.
#pragma once

#include <cstdint>
#include <vector>

#include "common.h"
#include "lstm_cell.h"

namespace svg_fast {

inline void check_count(const char* name, const std::vector<Tensor>& tensors, int64_t count) {
  STD_TORCH_CHECK(static_cast<int64_t>(tensors.size()) == count, name, " must hold ", count, " tensors, got ",
                  tensors.size());
}

// x (B, I), h, c (L, B, H)
inline void check_states(const Tensor& x, const Tensor& h, const Tensor& c) {
  check_rank("x", x, 2);
  check_rank("h", h, 3);
  check_at_least("the number of layers", h.size(0), 1);
  check_shape("h", h, {h.size(0), x.size(0), h.size(2)});
  check_shape("c", c, {h.size(0), x.size(0), h.size(2)});
}

// Of each layer (4H, I), and (4H, H) above the first.
inline void check_matrices(const char* name, const std::vector<Tensor>& weights, const Tensor& h, int64_t inputs) {
  const int64_t hidden = h.size(2);
  check_count(name, weights, h.size(0));
  for (const Tensor& w : weights) {
    check_shape(name, w, {kGates * hidden, inputs});
    inputs = hidden;
  }
}

inline void check_biases(const char* name, const std::vector<Tensor>& biases, const Tensor& h) {
  check_count(name, biases, h.size(0));
  for (const Tensor& b : biases) {
    check_shape(name, b, {kGates * h.size(2)});
  }
}

}  // namespace svg_fast
