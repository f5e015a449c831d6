/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels of a generated network: INT8 in, INT8 out, equal bit for bit to TensorFlow Lite Micro.
 *
 * C99, no heap, no library. Maps are [row][frame][channel], rows being frequency bands; they are
 * overwritten in place wherever that is possible. Define TINYSCENE_SIMD to 1 to use the DSP or MVE
 * instructions of an Arm core that has them: the same bits, fewer instructions.
 *
 * An int must have 32 bits, and right shifts of negative numbers must be arithmetic, as with every
 * compiler for Arm and x86.
 */
#ifndef TINYSCENE_KERNELS_H_
#define TINYSCENE_KERNELS_H_

#include <stdint.h>

#ifndef TINYSCENE_SIMD
#define TINYSCENE_SIMD 0
#endif

#if TINYSCENE_SIMD && defined(__ARM_FEATURE_MVE)
#define TS_MVE 1
#include <arm_acle.h>
#include <arm_mve.h>
#else
#define TS_MVE 0
#endif
/* Thumb only: in Arm state LDRD takes a pair of registers that lie beside each other. */
#if TINYSCENE_SIMD && !TS_MVE && defined(__ARM_FEATURE_DSP) && defined(__thumb__)
#define TS_DSP 1
#include <arm_acle.h>
#else
#define TS_DSP 0
#endif

/* Four weights of one output channel, in the order in which SXTB16 takes them apart. */
#if TS_DSP
#define TS_W4(a, b, c, d) (a), (c), (b), (d)
#define TS_ALIGNED __attribute__((aligned(4))) /* four weights are loaded at once */
#else
#define TS_W4(a, b, c, d) (a), (b), (c), (d)
#define TS_ALIGNED
#endif

/* Positions of a convolution that are computed together: each weight is loaded once for all. */
#define TS_POSITIONS 4

typedef char ts_shifts_are_arithmetic[((-2) >> 1) == -1 ? 1 : -1];
typedef char ts_int_has_32_bits[sizeof(int) >= 4 ? 1 : -1];

/* int32 sums to int8, one multiplier a channel. */
typedef struct {
    const int32_t *bias;
    const int32_t *multiplier; /* Q0.31, not negative */
    const int8_t *shift;       /* power of two: negative is right */
    int32_t zero_point, low;
} ts_channels;

/* The same with one multiplier. */
typedef struct {
    int32_t multiplier, shift, zero_point, low;
} ts_rescale;

/* A convolution as dot products of `depth` weights, a multiple of 8; rows and frames of padding
 * lie before the first. */
typedef struct {
    int32_t in_rows, in_frames, in_channels;
    int32_t out_rows, out_frames, out_channels;
    int32_t kernel_rows, kernel_frames, stride_rows, stride_frames, pad_rows, pad_frames;
    int32_t depth, in_zero_point;
    const int8_t *weights; /* [out_channels][depth] of TS_W4 */
    ts_channels out;
} ts_conv;

/* ADD or SUB: each operand scaled to a common fixed point, then the sum or difference rescaled. */
typedef struct {
    int32_t zero_point, multiplier, shift;
} ts_operand;
typedef struct {
    ts_operand first, second;
    ts_rescale out;
} ts_sum;

/* MUL. */
typedef struct {
    int32_t first_zero_point, second_zero_point;
    ts_rescale out;
} ts_product;

/* A 3x1 depthwise convolution over rows, one set of weights for each of `bands` runs of rows, with
 * the mean of its output over rows (less that of its input, where `difference` is given). */
typedef struct {
    int32_t rows, frames, channels, bands, in_zero_point;
    const int8_t *weights; /* [bands][channels][3] */
    ts_channels out;       /* [bands][channels] */
    const ts_sum *difference;
} ts_frequency_conv;

/* A 1x3 depthwise convolution over frames, then a table of 256 codes. */
typedef struct {
    int32_t frames, channels, in_zero_point;
    const int8_t *weights; /* [channels][3] */
    ts_channels out;
    const int8_t *activation;
} ts_temporal_conv;

/* map + row, the row broadcast over all rows. */
typedef struct {
    int32_t rows, row_bytes;
    const int32_t *map_codes; /* 256 codes of the map, scaled and shifted left for `out` */
    ts_operand row;
    ts_rescale out;
} ts_residual;

/* x (lambda + 1 / std) - mean / std, with the statistics of each row. */
typedef struct {
    int32_t rows, frames, channels;
    const int8_t *square, *squared_mean, *rsqrt, *gain; /* tables of 256 codes */
    int32_t x_zero_point, square_zero_point, row_mean_zero_point, row_power_zero_point;
    int32_t row_mean_weight, mean_weight, row_power_weight, power_weight;
    ts_rescale row_mean, mean, row_power, power;
    ts_sum variance;
    ts_product offset, scaled;
    ts_sum out;
} ts_res_norm;

/* A multiplier made ready: x becomes (((x << left) * multiplier / 2^32 rounded) + addend) >> right,
 * the addend holding the zero point and half a step. Exactly MultiplyByQuantizedMultiplier, which
 * rounds twice, and the zero point, where |x << left| < 2^31; converting has made sure of that. */
typedef struct {
    int32_t multiplier, left, right, addend, away;
} ts_step;

static inline ts_step ts_step_of(int32_t multiplier, int32_t shift, int32_t zero_point) {
    ts_step step;
    step.multiplier = multiplier;
    step.left = shift > 0 ? shift + 1 : 1;
    step.right = shift > 0 ? 0 : -shift;
    step.addend = (1 << step.right >> 1) + zero_point * (1 << step.right);
    step.away = step.right > 0 ? -1 : 0; /* halves of negative numbers go down */
    return step;
}

/* The same of x that is shifted already. */
static inline int32_t ts_high_step(int32_t x, const ts_step *step) {
#if TS_DSP || TS_MVE
    __asm__("smmulr %0, %1, %2" : "=r"(x) : "r"(x), "r"(step->multiplier));
#else
    x = (int32_t)(((int64_t)x * step->multiplier + ((int64_t)1 << 31)) >> 32);
#endif
    return (x + step->addend + ((x >> 31) & step->away)) >> step->right;
}

static inline int32_t ts_stepped(int32_t x, const ts_step *step) {
    return ts_high_step((int32_t)((uint32_t)x << step->left), step);
}

/* To the range of INT8, at least `low`. */
static inline int32_t ts_clamp(int32_t x, int32_t low) {
#if TS_DSP || TS_MVE
    __asm__("ssat %0, #8, %1" : "=r"(x) : "r"(x));
#else
    x = x > 127 ? 127 : x;
#endif
    return x < low ? low : x;
}

static inline int32_t ts_rescaled(int32_t x, const ts_rescale *to) {
    ts_step step = ts_step_of(to->multiplier, to->shift, to->zero_point);
    return ts_clamp(ts_stepped(x, &step), to->low);
}

static inline ts_step ts_channel_step(const ts_channels *to, int32_t channel) {
    return ts_step_of(to->multiplier[channel], to->shift[channel], to->zero_point);
}

/* The code of an operand of ADD or SUB, shifted left by 20 and scaled. */
static inline int32_t ts_scaled(int32_t code, const ts_operand *operand) {
    ts_step step = ts_step_of(operand->multiplier, operand->shift, 0);
    return ts_stepped((code - operand->zero_point) * (1 << 20), &step);
}

static inline int32_t ts_multiplied(int32_t a, int32_t b, const ts_product *p) {
    return ts_rescaled((a - p->first_zero_point) * (b - p->second_zero_point), &p->out);
}

/* sum / count, halves away from zero. */
static inline int32_t ts_mean(int32_t sum, int32_t count) {
    return sum < 0 ? -((-sum + count / 2) / count) : (sum + count / 2) / count;
}

/* ---- Convolutions ------------------------------------------------------------------------- */

/* Where value k of the window of position n lies among the columns. */
#if TS_MVE
#define TS_COLUMN(k, n, depth) ((n) * (depth) + (k))
#elif TS_DSP
#define TS_COLUMN(k, n, depth) (((k) >> 1) * (2 * TS_POSITIONS) + 2 * (n) + ((k) & 1))
#else
#define TS_COLUMN(k, n, depth) ((k) * TS_POSITIONS + (n))
#endif

#if TS_DSP || TS_MVE
static inline int32_t ts_pack(int32_t low, int32_t high) {
    return (int32_t)(((uint32_t)low & 0xffffu) | (uint32_t)high << 16);
}
#endif

#if TS_DSP
typedef uint32_t __attribute__((may_alias)) ts_word;
typedef uint64_t __attribute__((may_alias)) ts_words;

/* LDRD, which compilers take apart: the pairs of two positions. */
#define TS_LOAD_PAIRS(a, b, from) \
    __asm__("ldrd %0, %1, %2" : "=r"(a), "=r"(b) : "m"(*(from)))

/* Four weights with two values of each of four positions, and two more. */
static inline void ts_four(uint32_t weights, const ts_words *c, int32_t *s0, int32_t *s1,
                           int32_t *s2, int32_t *s3) {
    int16x2_t low = __sxtb16((int8x4_t)weights), high, a, b;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(high) : "r"(weights));
    TS_LOAD_PAIRS(a, b, c);
    *s0 = __smlad(low, a, *s0);
    *s1 = __smlad(low, b, *s1);
    TS_LOAD_PAIRS(a, b, c + 1);
    *s2 = __smlad(low, a, *s2);
    *s3 = __smlad(low, b, *s3);
    TS_LOAD_PAIRS(a, b, c + 2);
    *s0 = __smlad(high, a, *s0);
    *s1 = __smlad(high, b, *s1);
    TS_LOAD_PAIRS(a, b, c + 3);
    *s2 = __smlad(high, a, *s2);
    *s3 = __smlad(high, b, *s3);
}
#endif

/* Sums of one channel's weights with the windows of TS_POSITIONS positions. */
static inline void ts_dots(const int16_t *columns, const int8_t *weights, int32_t depth,
                           int32_t sums[TS_POSITIONS]) {
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#if TS_MVE
    const int16_t *c0 = columns, *c1 = c0 + depth, *c2 = c1 + depth, *c3 = c2 + depth;
    for (int32_t k = 0; k < depth; k += 8) {
        mve_pred16_t lanes = vctp16q((uint32_t)(depth - k));
        int16x8_t w = vldrbq_z_s16(weights + k, lanes);
        s0 = vmladavaq_p_s16(s0, w, vldrhq_z_s16(c0 + k, lanes), lanes);
        s1 = vmladavaq_p_s16(s1, w, vldrhq_z_s16(c1 + k, lanes), lanes);
        s2 = vmladavaq_p_s16(s2, w, vldrhq_z_s16(c2 + k, lanes), lanes);
        s3 = vmladavaq_p_s16(s3, w, vldrhq_z_s16(c3 + k, lanes), lanes);
    }
#elif TS_DSP
    const ts_words *c = (const ts_words *)(const void *)columns;
    for (const int8_t *end = weights + depth; weights < end; weights += 8, c += 8) {
        ts_four(*(const ts_word *)(const void *)weights, c, &s0, &s1, &s2, &s3);
        ts_four(*(const ts_word *)(const void *)(weights + 4), c + 4, &s0, &s1, &s2, &s3);
    }
#else
    for (const int8_t *end = weights + depth; weights < end; weights += 4) {
        int32_t w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
        s0 += w0 * columns[0] + w1 * columns[4] + w2 * columns[8] + w3 * columns[12];
        s1 += w0 * columns[1] + w1 * columns[5] + w2 * columns[9] + w3 * columns[13];
        s2 += w0 * columns[2] + w1 * columns[6] + w2 * columns[10] + w3 * columns[14];
        s3 += w0 * columns[3] + w1 * columns[7] + w2 * columns[11] + w3 * columns[15];
        columns += 4 * TS_POSITIONS;
    }
#endif
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

/* The input under the window of position n, less its zero point; padding and rest are 0. */
static inline void ts_gather(const ts_conv *p, const int8_t *x, int32_t row, int32_t frame,
                             int16_t *columns, int32_t n) {
    int32_t zero = p->in_zero_point, depth = p->depth, k = 0;
    int32_t top = row * p->stride_rows - p->pad_rows;
    int32_t left = frame * p->stride_frames - p->pad_frames;
    /* Frames of a kernel's row lie one after another: those inside, and padding on either side. */
    int32_t before = left < 0 ? -left : 0, after = left + p->kernel_frames - p->in_frames;
    int32_t inside = (p->kernel_frames - before - (after > 0 ? after : 0)) * p->in_channels;
    for (int32_t r = top; r < top + p->kernel_rows; ++r) {
        int32_t end = k + p->kernel_frames * p->in_channels;
        if (r >= 0 && r < p->in_rows) {
            const int8_t *from = x + (r * p->in_frames + left + before) * p->in_channels;
            for (int32_t stop = k + before * p->in_channels; k < stop; ++k) {
                columns[TS_COLUMN(k, n, depth)] = 0;
            }
            int32_t stop = k + inside;
#if TS_DSP
            if (k & 1 && k < stop) {
                columns[TS_COLUMN(k, n, depth)] = (int16_t)(*from++ - zero);
                ++k;
            }
            ts_word *to = (ts_word *)(void *)(columns + TS_COLUMN(k, n, depth));
            for (; k + 1 < stop; k += 2, from += 2, to += TS_POSITIONS) {
                *to = (uint32_t)ts_pack(from[0] - zero, from[1] - zero);
            }
#endif
            for (; k < stop; ++k) {
                columns[TS_COLUMN(k, n, depth)] = (int16_t)(*from++ - zero);
            }
        }
        for (; k < end; ++k) {
            columns[TS_COLUMN(k, n, depth)] = 0;
        }
    }
    for (; k < depth; ++k) {
        columns[TS_COLUMN(k, n, depth)] = 0;
    }
}

/* `columns` has room for TS_POSITIONS * depth. Outputs are written after the windows of
 * TS_POSITIONS of them have been read, so y may lie before x and run into it. */
static inline void ts_convolve(const ts_conv *p, const int8_t *x, int8_t *y, int16_t *columns) {
    int32_t positions = p->out_rows * p->out_frames, row = 0, frame = 0;
    /* What is written may not be taken for a change of these. */
    int32_t channels = p->out_channels, depth = p->depth, low = p->out.low;
    for (int32_t first = 0; first < positions; first += TS_POSITIONS) {
        int32_t count = positions - first < TS_POSITIONS ? positions - first : TS_POSITIONS;
        /* Positions that are lacking repeat the last one: nothing is summed that was not written. */
        for (int32_t n = 0; n < TS_POSITIONS; ++n) {
            ts_gather(p, x, row, frame, columns, n);
            if (first + n + 1 < positions && ++frame == p->out_frames) {
                frame = 0;
                ++row;
            }
        }
        const int8_t *weights = p->weights;
        for (int32_t c = 0; c < channels; ++c, weights += depth) {
            int32_t sums[TS_POSITIONS], bias = p->out.bias[c];
            ts_step step = ts_channel_step(&p->out, c);
            int8_t *to = y + first * channels + c;
            ts_dots(columns, weights, depth, sums);
            to[0] = (int8_t)ts_clamp(ts_stepped(sums[0] + bias, &step), low);
            for (int32_t n = 1; n < count; ++n) {
                to[n * channels] = (int8_t)ts_clamp(ts_stepped(sums[n] + bias, &step), low);
            }
        }
    }
}

/* before * w0 + now * w1 + next * w2 + bias, with `pair` holding the first two values of a column. */
#if TS_DSP || TS_MVE
#define TS_THREE(next) (__smlad(w01, pair, bias) + w2 * (next))
#define TS_MOVE_ON(next) (pair = (int32_t)((uint32_t)pair >> 16 | (uint32_t)(next) << 16))
#else
#define TS_THREE(next) (bias + w0 * before + w1 * now + w2 * (next))
#define TS_MOVE_ON(next) (before = now, now = (next))
#endif

/* In place, down one column of rows after another; `means` is [frames][channels]. Biases hold what
 * the zero point of the input adds, so that codes are multiplied as they are. */
static inline void ts_convolve_rows(const ts_frequency_conv *p, int8_t *map, int8_t *means) {
    int32_t row_bytes = p->frames * p->channels, rows = p->rows / p->bands, low = p->out.low;
    for (int32_t i = 0, c = 0; i < row_bytes; ++i, c = c + 1 == p->channels ? 0 : c + 1) {
        int8_t *at = map + i;
        int32_t sum_in = *at, sum_out = 0;
#if TS_DSP || TS_MVE
        int32_t pair = ts_pack(p->in_zero_point, *at);
#else
        int32_t before = p->in_zero_point, now = *at;
#endif
        for (int32_t band = 0, channel = c; band < p->bands; ++band, channel += p->channels) {
            const int8_t *w = p->weights + 3 * channel;
            ts_step step = ts_channel_step(&p->out, channel);
            int32_t scale = 1 << step.left, bias = p->out.bias[channel] * scale;
            int32_t w0 = w[0] * scale, w1 = w[1] * scale, w2 = w[2] * scale;
#if TS_DSP || TS_MVE
            int32_t w01 = ts_pack(w0, w1);
#endif
            int32_t last = band + 1 == p->bands;
            for (int32_t r = rows - last; r > 0; --r, at += row_bytes) {
                int32_t next = at[row_bytes];
                int32_t code = ts_clamp(ts_high_step(TS_THREE(next), &step), low);
                *at = (int8_t)code;
                sum_in += next;
                sum_out += code;
                TS_MOVE_ON(next);
            }
            if (last) {
                *at = (int8_t)ts_clamp(ts_high_step(TS_THREE(p->in_zero_point), &step), low);
                sum_out += *at;
            }
        }
        int32_t mean = ts_mean(sum_out, p->rows);
        if (p->difference) {
            const ts_sum *d = p->difference;
            int32_t other = ts_scaled(ts_mean(sum_in, p->rows), &d->second);
            mean = ts_rescaled(ts_scaled(mean, &d->first) - other, &d->out);
        }
        means[i] = (int8_t)mean;
    }
}

/* In place on [frames][channels]. */
static inline void ts_convolve_frames(const ts_temporal_conv *p, int8_t *x) {
    for (int32_t c = 0; c < p->channels; ++c) {
        const int8_t *w = p->weights + 3 * c;
        int32_t before = p->in_zero_point, now = x[c], bias = p->out.bias[c];
        ts_step step = ts_channel_step(&p->out, c);
        for (int32_t t = 0; t < p->frames; ++t) {
            int8_t *at = x + t * p->channels + c;
            int32_t next = t + 1 < p->frames ? at[p->channels] : p->in_zero_point;
            int32_t sum = bias + w[0] * before + w[1] * now + w[2] * next;
            *at = p->activation[ts_clamp(ts_stepped(sum, &step), p->out.low) + 128];
            before = now;
            now = next;
        }
    }
}

/* ---- Sums, pools, normalisation ------------------------------------------------------------- */

static inline void ts_add_row(const ts_residual *p, int8_t *map, const int8_t *row) {
    ts_step step = ts_step_of(p->out.multiplier, p->out.shift, p->out.zero_point);
    int32_t rows = p->rows, row_bytes = p->row_bytes, low = p->out.low;
    const int32_t *codes = p->map_codes + 128;
    for (int32_t i = 0; i < row_bytes; ++i) {
        int32_t addend = ts_scaled(row[i], &p->row) * (1 << step.left);
        int8_t *at = map + i;
        for (int32_t r = rows; r > 0; --r, at += row_bytes) {
            *at = (int8_t)ts_clamp(ts_high_step(codes[*at] + addend, &step), low);
        }
    }
}

/* 2x2, in place; a rest at the end of an odd side is left out. */
static inline void ts_max_pool(int8_t *map, int32_t rows, int32_t frames, int32_t channels) {
    int8_t *to = map;
    int32_t row_bytes = frames * channels;
    for (int32_t r = 0; r + 1 < rows; r += 2) {
        for (int32_t t = 0; t + 1 < frames; t += 2) {
            const int8_t *from = map + r * row_bytes + t * channels;
            for (int32_t c = 0; c < channels; ++c, ++from) {
                int8_t a = from[0], b = from[channels];
                int8_t d = from[row_bytes], e = from[row_bytes + channels];
                a = a > b ? a : b;
                d = d > e ? d : e;
                *to++ = a > d ? a : d;
            }
        }
    }
}

/* The mean of each channel over all positions. */
static inline void ts_mean_pool(const int8_t *map, int32_t positions, int32_t channels,
                                int8_t *means) {
    for (int32_t c = 0; c < channels; ++c) {
        int32_t sum = 0;
        for (int32_t n = 0; n < positions; ++n) {
            sum += map[n * channels + c];
        }
        means[c] = (int8_t)ts_mean(sum, positions);
    }
}

/* The steps from a code to its normalised one. */
typedef struct {
    ts_step scaled, first, out;
} ts_normalizer;

/* One code of a row whose gain and subtrahend are known. */
static inline int32_t ts_normalized(const ts_res_norm *p, const ts_normalizer *by, int32_t code,
                                    int32_t gain, int32_t subtrahend) {
    int32_t x = ts_clamp(ts_stepped((code - p->scaled.first_zero_point) * gain, &by->scaled),
                         p->scaled.out.low);
    x = ts_stepped((x - p->out.first.zero_point) * (1 << 20), &by->first) - subtrahend;
    return ts_clamp(ts_stepped(x, &by->out), p->out.out.low);
}

/* In place, row by row. `table` has room for 256 codes: a row of more is looked up. */
static inline void ts_normalize(const ts_res_norm *p, int8_t *map, int8_t *table) {
    int32_t row_bytes = p->frames * p->channels;
    const int8_t *squares = p->square + 128;
    ts_normalizer by;
    by.scaled = ts_step_of(p->scaled.out.multiplier, p->scaled.out.shift, p->scaled.out.zero_point);
    by.first = ts_step_of(p->out.first.multiplier, p->out.first.shift, 0);
    by.out = ts_step_of(p->out.out.multiplier, p->out.out.shift, p->out.out.zero_point);
    for (int8_t *row = map; row < map + p->rows * row_bytes; row += row_bytes) {
        int32_t mean_sum = 0, power_sum = 0;
        const int8_t *x = row;
        for (int32_t t = 0; t < p->frames; ++t) {
            int32_t sum = -p->channels * p->x_zero_point;
            int32_t power = -p->channels * p->square_zero_point;
            for (int32_t c = 0; c < p->channels; ++c, ++x) {
                sum += *x;
                power += squares[*x];
            }
            mean_sum += ts_rescaled(sum * p->row_mean_weight, &p->row_mean);
            power_sum += ts_rescaled(power * p->row_power_weight, &p->row_power);
        }
        mean_sum -= p->frames * p->row_mean_zero_point;
        power_sum -= p->frames * p->row_power_zero_point;
        int32_t mean = ts_rescaled(mean_sum * p->mean_weight, &p->mean);
        int32_t power = ts_rescaled(power_sum * p->power_weight, &p->power);
        int32_t squared = ts_scaled(p->squared_mean[mean + 128], &p->variance.second);
        int32_t variance = ts_rescaled(ts_scaled(power, &p->variance.first) - squared,
                                       &p->variance.out);
        int32_t gain = p->gain[variance + 128] - p->scaled.second_zero_point;
        int32_t offset = ts_multiplied(mean, p->rsqrt[variance + 128], &p->offset);
        int32_t subtrahend = ts_scaled(offset, &p->out.second);
        if (row_bytes > 256) {
            for (int32_t code = -128; code < 128; ++code) {
                table[code + 128] = (int8_t)ts_normalized(p, &by, code, gain, subtrahend);
            }
            for (int32_t i = 0; i < row_bytes; ++i) {
                row[i] = table[row[i] + 128];
            }
        } else {
            for (int32_t i = 0; i < row_bytes; ++i) {
                row[i] = (int8_t)ts_normalized(p, &by, row[i], gain, subtrahend);
            }
        }
    }
}

#endif /* TINYSCENE_KERNELS_H_ */
