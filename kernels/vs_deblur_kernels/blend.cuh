// Dynamic temporal blending (Kim et al. 2017, equations 2 and 3) of one number, in float.
#pragma once

#include "device.cuh"

// Beta, clamped to 0..1.
DEVICE float clamped(float beta) { return beta < 0.f ? 0.f : beta > 1.f ? 1.f : beta; }

// w now + (1 - w) past with w = min(1, |tanh(a)| + beta).
DEVICE float blended(float a, float now, float past, float beta) {
  float w = fabsf(tanhf(a)) + beta;
  w = w > 1.f ? 1.f : w;  // not fminf, which would drop a NaN
  return fmaf(w, now, (1.f - w) * past);
}
