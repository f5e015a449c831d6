/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fixed-point front end: C99, integers alone, no heap, no library.
 *
 * It follows firmware_ref/fixed_fft.py, fixed_log.py and fixed_frontend.py, whose docstrings prove
 * that nothing overflows for any samples. tinyscene_frontend_tables.h is generated from them.
 */
#include "tinyscene_frontend.h"

#include "tinyscene_frontend_tables.h"

enum {
    POINTS = TINYSCENE_FRONTEND_HOP,
    WINDOW = 2 * POINTS,
    BANDS = TINYSCENE_FRONTEND_BANDS,
    FRAMES = TINYSCENE_FRONTEND_FRAMES,
    CHANNELS = TINYSCENE_FRONTEND_CHANNELS,
    REACH = 2
};

/* Right shifts of negatives must keep the sign, as with every compiler for Arm; C leaves it open. */
typedef char shift_of_int32_is_arithmetic[(INT32_C(-3) >> 1) == -2 ? 1 : -1];
typedef char shift_of_int64_is_arithmetic[(INT64_C(-3) >> 1) == -2 ? 1 : -1];
typedef char tables_are_of_these_sizes[sizeof cosine == 4 * WINDOW && sizeof mel_bins == BANDS &&
                                       sizeof mel_rise == 2 * (POINTS - 1) &&
                                       sizeof logarithm == 4 * (256 + 1) &&
                                       sizeof channel_shift == CHANNELS
                                           ? 1
                                           : -1];

/* a * b / 2^32, rounded half up. */
static inline int32_t multiply_high(int32_t a, int32_t b)
{
    return (int32_t)(((int64_t)a * b + INT64_C(0x80000000)) >> 32);
}

/* exp(-2 pi i k / 2048) z / 4, each part rounded once. */
static inline tinyscene_complex rotate_quarter(tinyscene_complex z, uint32_t k)
{
    const int32_t c = cosine[k], s = cosine[k + WINDOW / 4], minus_s = -s;
    const int64_t re = INT64_C(0x80000000) + (int64_t)z.re * c + (int64_t)z.im * minus_s;
    const int64_t im = INT64_C(0x80000000) + (int64_t)z.re * s + (int64_t)z.im * c;
    const tinyscene_complex result = {(int32_t)(re >> 32), (int32_t)(im >> 32)};
    return result;
}

/* The transform of four points, to z[0], z[size], z[2 size], z[3 size]. */
static inline void butterfly(tinyscene_complex *z, uint32_t size, const tinyscene_complex t[4])
{
    const int32_t re_sum02 = t[0].re + t[2].re, re_difference02 = t[0].re - t[2].re;
    const int32_t re_sum13 = t[1].re + t[3].re, re_difference13 = t[1].re - t[3].re;
    const int32_t im_sum02 = t[0].im + t[2].im, im_difference02 = t[0].im - t[2].im;
    const int32_t im_sum13 = t[1].im + t[3].im, im_difference13 = t[1].im - t[3].im;
    z[0].re = re_sum02 + re_sum13;
    z[0].im = im_sum02 + im_sum13;
    z[size].re = re_difference02 + im_difference13;
    z[size].im = im_difference02 - re_difference13;
    z[2 * size].re = re_sum02 - re_sum13;
    z[2 * size].im = im_sum02 - im_sum13;
    z[3 * size].re = re_difference02 - im_difference13;
    z[3 * size].im = im_difference02 + re_difference13;
}

/* The largest shift, of 0 to 15, that leaves both halves of the frame within 2^15. */
static uint32_t headroom(const int16_t *previous, const int16_t *hop, uint32_t count)
{
    int32_t bits = 0;
    uint32_t shift = 0;
    for (uint32_t n = 0; n < POINTS; ++n) {
        bits |= previous[n] ^ (previous[n] >> 15);
    }
    for (uint32_t n = 0; n < count; ++n) {
        bits |= hop[n] ^ (hop[n] >> 15);
    }
    while (shift < 15 && (bits >> (14 - shift)) == 0) {
        ++shift;
    }
    return shift;
}

/* A sample, times scale in Q30, times the Hamming window at n in Q30, rounded to Q28. */
static inline int32_t windowed(int32_t sample, int32_t scale, uint32_t n)
{
    return multiply_high(sample * scale, HAMMING_MEAN - multiply_high(cosine[n], HAMMING_SWING));
}

/* Window the previous hop and count samples of this one; zeros follow them. First FFT stage. */
static void first_stage(tinyscene_frontend *frontend, const int16_t *hop, uint32_t count,
                        uint32_t shift)
{
    const int32_t scale = INT32_C(1) << (15 + shift);
    for (uint32_t j = 0; j < POINTS / 4; ++j) {
        const uint32_t reversed =
            ((j & 3u) << 6) | ((j & 12u) << 2) | ((j >> 2) & 12u) | ((j >> 6) & 3u);
        tinyscene_complex t[4];
        for (uint32_t q = 0; q < 2; ++q) {
            const uint32_t n = 2 * j + q * (POINTS / 2);
            t[q].re = windowed(frontend->previous[n], scale, n);
            t[q].im = windowed(frontend->previous[n + 1], scale, n + 1);
            t[q + 2].re = n < count ? windowed(hop[n], scale, POINTS + n) : 0;
            t[q + 2].im = n + 1 < count ? windowed(hop[n + 1], scale, POINTS + n + 1) : 0;
        }
        butterfly(&frontend->spectrum[4 * reversed], 1, t);
    }
}

/* Four radix-4 stages in place, each a quarter of the sums. */
static void later_stages(tinyscene_complex *z)
{
    for (uint32_t size = 4; size < POINTS; size *= 4) {
        for (uint32_t j = 0; j < size; ++j) {
            const uint32_t k = j * (WINDOW / (4 * size));
            for (tinyscene_complex *at = z + j; at < z + POINTS; at += 4 * size) {
                tinyscene_complex t[4];
                t[0].re = (at[0].re + 2) >> 2;
                t[0].im = (at[0].im + 2) >> 2;
                t[1] = rotate_quarter(at[size], k);
                t[2] = rotate_quarter(at[2 * size], 2 * k);
                t[3] = rotate_quarter(at[3 * size], 3 * k);
                butterfly(at, size, t);
            }
        }
    }
}

/* From the transform of even + i odd samples to the real signal's bins 1 to 1023, halved. */
static void split(tinyscene_complex *z)
{
    for (uint32_t k = 1; k <= POINTS / 2; ++k) {
        const tinyscene_complex a = z[k], b = z[POINTS - k];
        const tinyscene_complex even = {(a.re + b.re + 2) >> 2, (a.im - b.im + 2) >> 2};
        const tinyscene_complex twice_odd = {a.im + b.im, b.re - a.re};
        const tinyscene_complex odd = rotate_quarter(twice_odd, k);
        z[POINTS - k].re = even.re - odd.re;
        z[POINTS - k].im = odd.im - even.im;
        z[k].re = even.re + odd.re;
        z[k].im = even.im + odd.im;
    }
}

/* ln(x / 2^exponent) in Q18, for x of 1 to 2^63. */
static int32_t natural_log(uint64_t x, int32_t exponent)
{
    int32_t power = 63;
    for (uint32_t step = 32; step > 0; step /= 2) {
        if ((x >> (64 - step)) == 0) {
            x <<= step;
            power -= (int32_t)step;
        }
    }
    const uint32_t high = (uint32_t)(x >> 32);
    const uint32_t *line = &logarithm[(high >> 23) & 0xFFu];
    const uint32_t mantissa = line[0] + ((line[1] - line[0]) * ((high >> 7) & 0xFFFFu) >> 16);
    return ((power - exponent) * LN2 + (int32_t)mantissa + 32) >> 6;
}

/*
 * Mel energies of bins 1 to 1023, as logarithms. Where one filter falls the next one rises, and
 * their weights add to 1: one weight a bin.
 */
static void log_mels(tinyscene_frontend *frontend, uint32_t shift)
{
    const tinyscene_complex *z = frontend->spectrum + 1;
    const uint16_t *weight = mel_rise;
    uint64_t risen = 0;
    for (uint32_t band = 0; band < BANDS; ++band) {
        uint64_t total = 0, high = 0, low = 0;
        for (uint32_t bins = mel_bins[band]; bins > 0; --bins, ++z, ++weight) {
            const uint64_t power = (uint64_t)((int64_t)z->re * z->re + (int64_t)z->im * z->im);
            total += power;
            high += (uint64_t)(uint32_t)(power >> 32) * *weight;
            low += (uint64_t)(uint32_t)power * *weight;
        }
        const uint64_t rising = (high << 16) + (low >> 16);
        const uint64_t energy = total - rising + risen + ((uint64_t)LOG_FLOOR << (2 * shift));
        frontend->log_mel[band][frontend->frames] =
            natural_log(energy, (int32_t)(POWER_BITS + 2 * shift));
        risen = rising;
    }
}

/* The next frame, of the previous hop and count samples of this one. */
static void next_frame(tinyscene_frontend *frontend, const int16_t *hop, uint32_t count)
{
    const uint32_t shift = headroom(frontend->previous, hop, count);
    first_stage(frontend, hop, count, shift);
    later_stages(frontend->spectrum);
    split(frontend->spectrum);
    log_mels(frontend, shift);
    ++frontend->frames;
}

/* x[-1], x[-2] and those beyond the last frame repeat the edges. */
static void repeat_edges(int32_t *x)
{
    for (int n = 1; n <= REACH; ++n) {
        x[-n] = x[0];
        x[FRAMES - 1 + n] = x[FRAMES - 1];
    }
}

/* Ten times the five-point regression at x. */
static inline int32_t delta_tenfold(const int32_t *x)
{
    return x[1] - x[-1] + 2 * (x[2] - x[-2]);
}

static int8_t quantized(int32_t x, uint32_t channel)
{
    const int64_t code =
        ((int64_t)x * channel_multiplier[channel] + channel_offset[channel]) >>
        channel_shift[channel];
    return (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
}

void tinyscene_frontend_begin(tinyscene_frontend *frontend)
{
    for (uint32_t n = 0; n < POINTS; ++n) {
        frontend->previous[n] = 0;
    }
    frontend->frames = 0;
}

bool tinyscene_frontend_push(tinyscene_frontend *frontend, const int16_t *hop)
{
    if (frontend->frames >= TINYSCENE_FRONTEND_HOPS) {
        return false;
    }
    next_frame(frontend, hop, POINTS);
    for (uint32_t n = 0; n < POINTS; ++n) {
        frontend->previous[n] = hop[n];
    }
    return true;
}

bool tinyscene_frontend_finish(tinyscene_frontend *frontend, const int16_t *tail, int8_t *output)
{
    if (frontend->frames != TINYSCENE_FRONTEND_HOPS) {
        return false;
    }
    next_frame(frontend, tail, TINYSCENE_FRONTEND_TAIL);
    for (uint32_t band = 0; band < BANDS; ++band) {
        int32_t row[FRAMES + 2 * REACH], slope[FRAMES + 2 * REACH];
        int32_t *x = row + REACH, *first = slope + REACH;
        for (uint32_t n = 0; n < FRAMES; ++n) {
            x[n] = frontend->log_mel[band][n];
        }
        repeat_edges(x);
        for (uint32_t n = 0; n < FRAMES; ++n) {
            first[n] = delta_tenfold(x + n);
        }
        repeat_edges(first);
        for (uint32_t n = 0; n < FRAMES; ++n) {
            *output++ = quantized(x[n], 0);
#if TINYSCENE_FRONTEND_CHANNELS == 3
            *output++ = quantized(first[n], 1);
            *output++ = quantized(delta_tenfold(first + n), 2);
#endif
        }
    }
    return true;
}
