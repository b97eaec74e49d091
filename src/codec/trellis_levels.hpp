// Levels of the trellis codes (codec/trellis.hpp): what a window of codes stands for, as bytes, x' = alpha (level -
// 127.5).
//
// Made by scripts/train_trellis.py for normally distributed values, which is what a Hadamard rotation makes of a head.
// For all numbers of bits a unit is the same share of a standard deviation, so that tiles of different bits share one
// alpha.
#pragma once

#include <array>
#include <cstdint>

#include "codec/levels.hpp"

namespace mikv::codec {

/// Where levels are 0.
inline constexpr float kTrellisCentre = 127.5f;
/// Standard deviations a unit.
inline constexpr float kTrellisUnit = 3.0f / 127.5f;

namespace detail {
inline constexpr uint8_t kValue1[4] = {
    150,
    85,
    104,
    174,
};
inline constexpr uint8_t kKey1[32] = {
    95, 160, 109, 168, 108, 162, 97,  164, 112, 171, 94,  153, 95,  160, 57,  134,
    54, 135, 204, 114, 190, 112, 152, 99,  169, 105, 155, 96,  153, 94,  139, 66,
};
inline constexpr uint8_t kValue2[16] = {
    69, 187, 152, 117, 105, 35, 218, 147, 137, 102, 69, 181, 172, 140, 116, 84,
};
inline constexpr uint8_t kKey2[64] = {
    188, 146, 72,  114, 132, 167, 101, 56,  151, 76,  190, 114, 187, 144, 87,  121, 73,  199, 114, 151, 168, 41,
    133, 101, 238, 118, 83,  150, 58,  182, 118, 152, 122, 93,  154, 49,  220, 98,  167, 133, 86,  146, 118, 191,
    116, 81,  158, 18,  145, 117, 182, 87,  100, 134, 54,  170, 120, 182, 146, 82,  152, 119, 207, 88,
};
inline constexpr uint8_t kAny3[64] = {
    74, 46,  120, 98,  158, 138, 227, 185, 7,   119, 104, 153, 137, 203, 176, 84,  118, 101, 152, 133, 217, 176,
    85, 56,  103, 149, 134, 190, 168, 87,  65,  120, 150, 135, 195, 168, 88,  63,  120, 105, 137, 192, 170, 78,
    37, 122, 104, 155, 207, 168, 86,  57,  121, 106, 151, 137, 178, 74,  32,  116, 99,  155, 135, 249,
};
inline constexpr uint8_t kAny4[64] = {
    144, 106, 100, 131, 123, 116, 65, 45, 0,  89, 79,  184, 171, 159, 233, 202, 185, 137, 131, 163, 153, 146,
    109, 104, 97,  123, 117, 68,  52, 23, 90, 83, 73,  175, 166, 255, 210, 191, 139, 135, 129, 154, 148, 112,
    105, 95,  123, 121, 114, 58,  36, 97, 87, 76, 180, 170, 162, 220, 196, 142, 136, 127, 155, 151,
};
inline constexpr uint8_t kAny6[64] = {
    0,   11,  19,  27,  33,  39,  44,  49,  54,  58,  62,  66,  70,  73,  77,  80,  83,  87,  90,  93,  96,  99,
    101, 104, 107, 110, 113, 115, 118, 121, 123, 126, 129, 132, 134, 137, 140, 142, 145, 148, 151, 154, 156, 159,
    162, 165, 168, 172, 175, 178, 182, 185, 189, 193, 197, 201, 206, 211, 216, 222, 228, 236, 244, 255,
};

template <size_t kSize>
constexpr Levels repeated(const uint8_t (&levels)[kSize]) {
  Levels all{};
  for (size_t i = 0; i < all.size(); ++i) all[i] = levels[i % kSize];
  return all;
}
}  // namespace detail

/// Tables of keys and of values for 1 to 4 bits; those of windows below 6 bits repeat.
inline constexpr std::array<Levels, 4> kKeyLevels = {detail::repeated(detail::kKey1), detail::repeated(detail::kKey2),
                                                     detail::repeated(detail::kAny3), detail::repeated(detail::kAny4)};
inline constexpr std::array<Levels, 4> kValueLevels = {
    detail::repeated(detail::kValue1), detail::repeated(detail::kValue2), detail::repeated(detail::kAny3),
    detail::repeated(detail::kAny4)};
/// Of 6 bits: ascending, as the window is the code. Lloyd's levels of a normal distribution, the outermost at most 3
/// deviations off.
inline constexpr Levels kLevels6 = detail::repeated(detail::kAny6);

}  // namespace mikv::codec
