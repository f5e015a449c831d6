/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One second of sound to the INT8 input of the network, in integers and hop by hop.
 *
 *     static tinyscene_frontend frontend;               // 32,772 bytes: all its memory
 *     tinyscene_frontend_begin(&frontend);
 *     for (int i = 0; i < TINYSCENE_FRONTEND_HOPS; ++i)
 *         tinyscene_frontend_push(&frontend, hop);      // each hop as it arrives
 *     tinyscene_frontend_finish(&frontend, tail, input);
 *
 * Samples are mono int16 PCM at 44,100 Hz. The output is the network's input tensor, row by row:
 * band, frame, and log-mel, delta, delta of the delta, or log-mel alone. It is bit for bit that of
 * firmware_ref.fixed_frontend, for whatever samples.
 *
 * On a Cortex-M4 (GCC 12, -O2, emulated): 288,000 instructions a hop, 730,000 the finish, 13.1
 * million a second; 13.6 KB of flash, of which tables 11.4 KB; 700 bytes of stack.
 */
#ifndef TINYSCENE_FRONTEND_H_
#define TINYSCENE_FRONTEND_H_

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TINYSCENE_FRONTEND_SAMPLES 44100
#define TINYSCENE_FRONTEND_HOP 1024
#define TINYSCENE_FRONTEND_HOPS (TINYSCENE_FRONTEND_SAMPLES / TINYSCENE_FRONTEND_HOP)
#define TINYSCENE_FRONTEND_TAIL (TINYSCENE_FRONTEND_SAMPLES % TINYSCENE_FRONTEND_HOP)
#define TINYSCENE_FRONTEND_BANDS 128
#define TINYSCENE_FRONTEND_FRAMES (TINYSCENE_FRONTEND_HOPS + 1)
#define TINYSCENE_FRONTEND_CHANNELS 3
#define TINYSCENE_FRONTEND_OUTPUT \
    (TINYSCENE_FRONTEND_BANDS * TINYSCENE_FRONTEND_FRAMES * TINYSCENE_FRONTEND_CHANNELS)

typedef struct {
    int32_t re;
    int32_t im;
} tinyscene_complex;

/* Private: one second in the making. */
typedef struct {
    int32_t log_mel[TINYSCENE_FRONTEND_BANDS][TINYSCENE_FRONTEND_FRAMES];
    tinyscene_complex spectrum[TINYSCENE_FRONTEND_HOP];
    int16_t previous[TINYSCENE_FRONTEND_HOP];
    uint32_t frames;
} tinyscene_frontend;

/* Begin a second, whatever came before. */
void tinyscene_frontend_begin(tinyscene_frontend *frontend);

/* Take the next TINYSCENE_FRONTEND_HOP samples; false, and nothing done, after the last hop. */
bool tinyscene_frontend_push(tinyscene_frontend *frontend, const int16_t *hop);

/*
 * Take the last TINYSCENE_FRONTEND_TAIL samples and write TINYSCENE_FRONTEND_OUTPUT codes; false,
 * and nothing done, unless every hop came before. Begin again after it.
 */
bool tinyscene_frontend_finish(tinyscene_frontend *frontend, const int16_t *tail, int8_t *output);

#ifdef __cplusplus
}
#endif

#endif /* TINYSCENE_FRONTEND_H_ */
