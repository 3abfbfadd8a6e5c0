// Prints what the kernels' matrix products give, as bits: built for several machines, some of them emulated, and compared.
#include <cmath>
#include <cstdio>
#include <vector>

#include "gemm.h"

namespace {

using namespace outpace;

uint64_t seed = 1;
uint32_t draw() {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return seed >> 33;
}
float draw_float() { return static_cast<float>(static_cast<int32_t>(draw() << 1)) * 0x1p-30f; }

constexpr int64_t kRows = 7, kInputs = 96, kOutputs = 40, kPanels = 2;

void print(const char* name, const std::vector<float>& outputs) {
  uint64_t hash = 14695981039346656037u;
  double total = 0;
  for (float value : outputs) {
    hash = (hash ^ bits<uint32_t>(value)) * 1099511628211u;
    total += value;
  }
  printf("%s %016llx %.6g\n", name, static_cast<unsigned long long>(hash), total);
}

// The outputs of a product, in tiles of all rows and of single ones; they must have the same bits.
template <class Type>
void run(const char* name, const Matrix& matrix, const std::vector<float>& inputs, const Coding* coding) {
  std::vector<float> results[2];
  for (int alone = 0; alone < 2; alone++) {
    std::vector<float>& outputs = results[alone];
    outputs.assign(kRows * kPanels * kColumns, 0);
    for (int64_t begin = 0; begin < kRows; begin += alone ? 1 : kRows) {
      const int64_t rows = alone ? 1 : kRows;
      std::vector<uint32_t> buffer(4 * kRows * (input_stride(kInputs) + kTileBlock * num_blocks(kInputs)));
      Inputs in{buffer.data(), input_stride(matrix.steps), rows};
      const Tiles tiles(rows, kMaxCodeTile, matrix.steps);
      for (int64_t row = 0; row < rows; row++) {
        const float* from = inputs.data() + (begin + row) * kInputs;
        if (coding) {
          encode_row(*coding, from, kInputs, tiles.place(in.data, row));
        } else {
          auto* to = reinterpret_cast<typename Type::Element*>(in.data + row * in.stride);
          for (int64_t k = 0; k < kInputs; k++) to[k] = Type::narrow_one(from[k]);
        }
      }
      for (int64_t panel = 0; panel < kPanels; panel++) {
        panel_product<Type>(in, matrix, panel, matrix.panel(0), [&](int64_t row, int64_t column, Floats* sums) {
          memcpy(outputs.data() + (begin + row) * kPanels * kColumns + column, sums, 4 * kColumns);
        });
      }
    }
  }
  print(memcmp(results[0].data(), results[1].data(), 4 * results[0].size()) ? "rows differ:" : name, results[0]);
}

template <class Type>
void run_plain(const char* name, const std::vector<float>& inputs) {
  std::vector<typename Type::Element> source(kOutputs * kInputs);
  for (auto& value : source) value = Type::narrow_one(draw_float());
  const int64_t steps = kInputs / Type::kPerWord;
  std::vector<uint32_t> panels(kPanels * steps * kColumns + 64);
  for (int64_t panel = 0; panel < kPanels; panel++) {
    pack_panel<Type>(source.data(), kInputs, steps, panels.data() + panel * steps * kColumns, [&](int column) {
      const int64_t row = panel * kColumns + column;
      return row < kOutputs ? row : -1;
    });
  }
  const auto* data = reinterpret_cast<const uint8_t*>(panels.data());
  run<Type>(name, {Coding{}, data, steps, kPanels, 4 * steps * kColumns}, inputs, nullptr);
}

void run_coded(int64_t bits, int64_t group, Factors factors, bool has_shift, bool has_table, const std::vector<float>& inputs) {
  static const uint8_t kTable[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
  const Coding coding{bits, group, factors, has_shift, has_shift ? 0 : int64_t{1} << (bits - 1), has_table ? kTable : nullptr};
  const int64_t blocks = num_blocks(kInputs), bytes = coding.panel_bytes(blocks);
  std::vector<uint8_t> codes(kOutputs * kInputs), factor[2], whole[2];
  for (auto& code : codes) code = draw() & ((1 << bits) - 1);
  for (int kind = 0; kind < 2; kind++) {
    for (int64_t i = 0; i < kOutputs * blocks * 2; i++) {
      const uint16_t half = 0x2000 + draw() % 0x0800;  // small positive numbers
      const float value = static_cast<float>(draw() % 100 + 1) / 4096.0f;
      uint8_t raw[4];
      if (factors == kHalf) memcpy(raw, &half, 2);
      else if (factors == kFloat) memcpy(raw, &value, 4);
      else raw[0] = draw() % 64;
      factor[kind].insert(factor[kind].end(), raw, raw + coding.factor_bytes() / kColumns);
    }
    for (int64_t i = 0; i < 2 * kOutputs; i++) whole[kind].push_back(i % 2 ? 0x14 + draw() % 8 : draw());
  }
  const Coded coded{coding, kOutputs, kInputs, codes.data(), {factor[0].data(), factor[1].data()}, {whole[0].data(), whole[1].data()}};
  std::vector<uint8_t> panels(kPanels * bytes + 4096);
  for (int64_t row = 0; row < kOutputs; row++) pack_column(coded, row, panels.data() + row / kColumns * bytes, row % kColumns);
  char name[80];
  snprintf(name, sizeof name, "codes-%lld-%lld-%d-%d-%d", static_cast<long long>(bits), static_cast<long long>(group), factors, has_shift, has_table);
  run<Float32>(name, {coding, panels.data(), blocks, kPanels, bytes}, inputs, &coding);
}

}  // namespace

int main() {
  std::vector<float> inputs(kRows * kInputs + kPadding);
  for (float& value : inputs) value = draw_float();
  run_plain<Float32>("float32", inputs);
  run_plain<Bfloat16>("bfloat16", inputs);
  for (int64_t bits : {4, 5, 6, 8}) {
    for (int64_t group : {16, 32, 96}) {
      for (bool has_shift : {false, true}) run_coded(bits, group, group == 96 ? kFloat : kHalf, has_shift, false, inputs);
    }
    run_coded(bits, 32, kWhole, true, false, inputs);
  }
  run_coded(4, 32, kHalf, false, true, inputs);
  float sum = 0;
  for (float value : {-90.0f, -3.5f, 0.0f, 1.25f, 60.0f}) sum += exponential(splat(value))[0];
  printf("exponential %08x\n", bits<uint32_t>(sum));
}
