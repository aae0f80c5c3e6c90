/* SPDX-License-Identifier: Apache-2.0
 *
 * Fake quantization on the processor in one pass forward and one backward.
 *
 * The formulas are those of nncf/algorithms/quantization/formula.py, the arithmetic is that of
 * fake_quantize_reference in nncf/torch/kernels.py, to the last bit: compile without contraction
 * into fused multiply-adds. A dense tensor is seen as [outer, channels, inner] in the order of
 * its memory. `grid` is [6, channels]: step, 1 / step, lowest and highest code (counted from the
 * code of zero), and the bounds of the range outside which no gradient flows to the input.
 *
 * Sums do not depend on the number of threads: blocks of fixed size are summed each on its own,
 * then in their order.
 */

#include <math.h>
#include <stdlib.h>

enum { STEP, INVERSE, LOWEST, HIGHEST, LOW, HIGH };
enum { ERROR, ABOVE, BELOW, SUMS };
#define BLOCK 8192       /* elements that one float accumulator chain may see */
#define PARALLEL 32768   /* elements below which waking the threads costs more than it gives */
#define MAX_STRIPES 32   /* partial results of the channels-last sum */

typedef long long index_t;

static inline index_t least(index_t a, index_t b) { return a < b ? a : b; }

static inline float code_of(float scaled, float lowest, float highest)
{
    float code = nearbyintf(scaled); /* ties to even; a NaN passes both comparisons unchanged */
    code = code < lowest ? lowest : code;
    return code > highest ? highest : code;
}

/* Adding a zero turns a negative zero, which no integer code has, into a positive one. */
static inline float value_of(float code, float step) { return (code + 0.0f) * step; }

static void forward_row(const float *restrict x, float *restrict out, index_t n,
                        const float *grid, index_t channels)
{
    const float step = grid[STEP * channels], inverse = grid[INVERSE * channels];
    const float lowest = grid[LOWEST * channels], highest = grid[HIGHEST * channels];
    for (index_t i = 0; i < n; i++)
        out[i] = value_of(code_of(x[i] * inverse, lowest, highest), step);
}

static void forward_last(const float *restrict x, float *restrict out, index_t rows,
                         const float *restrict grid, index_t channels)
{
    for (index_t r = 0; r < rows; r++, x += channels, out += channels)
        for (index_t c = 0; c < channels; c++)
            out[c] = value_of(code_of(x[c] * grid[INVERSE * channels + c],
                                      grid[LOWEST * channels + c], grid[HIGHEST * channels + c]),
                              grid[STEP * channels + c]);
}

void nncf_fake_quantize(const float *x, float *out, const float *grid, index_t outer,
                        index_t channels, index_t inner, int threads)
{
    const index_t total = outer * channels * inner;
    if (inner == 1 && channels > 1) {
        const index_t rows = 1 + BLOCK / channels, blocks = (outer + rows - 1) / rows;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && total > PARALLEL)
        for (index_t b = 0; b < blocks; b++)
            forward_last(x + b * rows * channels, out + b * rows * channels,
                         least(rows, outer - b * rows), grid, channels);
        return;
    }
    const index_t blocks = (inner + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && total > PARALLEL)
    for (index_t unit = 0; unit < outer * channels * blocks; unit++) {
        const index_t row = unit / blocks, start = (unit % blocks) * BLOCK;
        forward_row(x + row * inner + start, out + row * inner + start,
                    least(BLOCK, inner - start), grid + row % channels, channels);
    }
}

static void backward_row(const float *restrict g, const float *restrict x, float *restrict dx,
                         index_t n, const float *grid, index_t channels, double *sums)
{
    const float inverse = grid[INVERSE * channels];
    const float lowest = grid[LOWEST * channels], highest = grid[HIGHEST * channels];
    const float low = grid[LOW * channels], high = grid[HIGH * channels];
    float error = 0, above = 0, below = 0;
#pragma omp simd reduction(+ : error, above, below)
    for (index_t i = 0; i < n; i++) {
        const float scaled = x[i] * inverse;
        const float over = x[i] > high ? g[i] : 0.0f, under = x[i] < low ? g[i] : 0.0f;
        const float inside = (x[i] > high) | (x[i] < low) ? 0.0f : g[i];
        dx[i] = inside;
        error += inside * (code_of(scaled, lowest, highest) - scaled);
        above += over;
        below += under;
    }
    sums[ERROR] = error;
    sums[ABOVE] = above;
    sums[BELOW] = below;
}

static void backward_last(const float *restrict g, const float *restrict x, float *restrict dx,
                          index_t rows, const float *restrict grid, index_t channels,
                          double *restrict sums)
{
    for (index_t r = 0; r < rows; r++, g += channels, x += channels, dx += channels)
#pragma omp simd
        for (index_t c = 0; c < channels; c++) {
            const float scaled = x[c] * grid[INVERSE * channels + c];
            const int over = x[c] > grid[HIGH * channels + c];
            const int under = x[c] < grid[LOW * channels + c];
            const float inside = over | under ? 0.0f : g[c];
            const float code = code_of(scaled, grid[LOWEST * channels + c],
                                       grid[HIGHEST * channels + c]);
            dx[c] = inside;
            sums[ERROR * channels + c] += inside * (code - scaled);
            sums[ABOVE * channels + c] += over ? g[c] : 0.0f;
            sums[BELOW * channels + c] += under ? g[c] : 0.0f;
        }
}

/* `sums` is [SUMS, channels]; returns 0, or 1 when there is no memory for partial sums. */
int nncf_fake_quantize_backward(const float *g, const float *x, float *dx, const float *grid,
                                double *sums, index_t outer, index_t channels, index_t inner,
                                int threads)
{
    const index_t total = outer * channels * inner, width = SUMS * channels;
    for (index_t i = 0; i < width; i++)
        sums[i] = 0;
    if (total == 0)
        return 0;
    if (inner == 1 && channels > 1) {
        const index_t stripes = least(MAX_STRIPES, 1 + total / BLOCK);
        const index_t rows = (outer + stripes - 1) / stripes;
        double *partial = calloc(stripes * width, sizeof(double));
        if (!partial)
            return 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && total > PARALLEL)
        for (index_t s = 0; s < stripes; s++) {
            const index_t start = s * rows * channels;
            if (s * rows < outer)
                backward_last(g + start, x + start, dx + start, least(rows, outer - s * rows),
                              grid, channels, partial + s * width);
        }
        for (index_t s = 0; s < stripes; s++)
            for (index_t i = 0; i < width; i++)
                sums[i] += partial[s * width + i];
        free(partial);
        return 0;
    }
    const index_t blocks = (inner + BLOCK - 1) / BLOCK, units = outer * channels * blocks;
    double *partial = malloc(units * SUMS * sizeof(double));
    if (!partial)
        return 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && total > PARALLEL)
    for (index_t unit = 0; unit < units; unit++) {
        const index_t row = unit / blocks, start = (unit % blocks) * BLOCK;
        const index_t at = row * inner + start;
        backward_row(g + at, x + at, dx + at, least(BLOCK, inner - start),
                     grid + row % channels, channels, partial + unit * SUMS);
    }
    for (index_t unit = 0; unit < units; unit++)
        for (int i = 0; i < SUMS; i++)
            sums[i * channels + unit / blocks % channels] += partial[unit * SUMS + i];
    free(partial);
    return 0;
}
