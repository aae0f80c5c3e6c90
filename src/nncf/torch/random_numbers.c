/* SPDX-License-Identifier: Apache-2.0
 *
 * Random numbers that depend on their place only: uniform_reference of random_kernels.py in one
 * pass, to the last bit. Unsigned integers wrap, and every float on the way is exact.
 */

typedef long long index_t;

#define PARALLEL 32768 /* elements below which waking the threads costs more than it gives */

void nncf_uniform(float *restrict out, index_t n, unsigned first, unsigned second, int threads)
{
    (void)threads; /* without OpenMP */
#pragma omp parallel for simd num_threads(threads) if (n >= PARALLEL) schedule(static)
    for (index_t i = 0; i < n; i++) {
        unsigned h = (unsigned)i + first;
        h ^= h >> 16;
        h *= 0x7feb352du;
        h ^= h >> 15;
        h += second;
        h *= 0x846ca68bu;
        h ^= h >> 16;
        /* 23 bits, counted from the middle of the interval, each taken at its centre */
        out[i] = ((float)((int)h >> 9) + 0.5f) * 0x1p-23f + 0.5f;
    }
}
