/* SPDX-License-Identifier: Apache-2.0 */
/* On an emulated board: every window of windows.pcm through front end and network, with what each
 * layer gave and cost, as lines for the program that started it. */
#include <stdio.h>
#include <string.h>

#include "tinyscene_frontend.h"
#include "tinyscene_model.h"

#define PAINTED_BYTES 12288
#define PAINT 0xA5

static uint32_t ticks(void) { return *(volatile uint32_t *)TINYSCENE_COUNTER; }

static uint32_t crc32(const int8_t *data, int32_t bytes) {
    uint32_t crc = 0xFFFFFFFFu;
    for (int32_t i = 0; i < bytes; ++i) {
        crc ^= (uint8_t)data[i];
        for (int bit = 0; bit < 8; ++bit) {
            crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

static struct {
    const char *name;
    uint32_t ticks, crc;
} layers[TINYSCENE_LAYERS];
static int32_t count;
static uint32_t last;

void tinyscene_trace(int32_t number, const char *layer, const int8_t *data, int32_t bytes) {
    layers[number].ticks = ticks() - last;
    layers[number].name = layer;
    layers[number].crc = crc32(data, bytes);
    count = number + 1;
    last = ticks();
}

static int16_t window[TINYSCENE_FRONTEND_SAMPLES];
static tinyscene_frontend frontend;
static tinyscene_memory memory;
static int8_t logits[TINYSCENE_OUTPUTS];
static uint32_t hop_ticks, finish_ticks;

static void hear(void) {
    const int16_t *at = window;
    tinyscene_frontend_begin(&frontend);
    hop_ticks = 0;
    for (int32_t n = 0; n < TINYSCENE_FRONTEND_HOPS; ++n, at += TINYSCENE_FRONTEND_HOP) {
        uint32_t started = ticks();
        tinyscene_frontend_push(&frontend, at);
        started = ticks() - started;
        hop_ticks = started > hop_ticks ? started : hop_ticks;
    }
    finish_ticks = ticks();
    tinyscene_frontend_finish(&frontend, at, tinyscene_input(&memory));
    finish_ticks = ticks() - finish_ticks;
}

static void classify(void) {
    last = ticks();
    tinyscene_run(&memory, logits);
}

/* Bytes of stack that a function and what it calls write to. */
static uint32_t __attribute__((noinline)) stack_of(void (*function)(void)) {
    uint8_t *top = (uint8_t *)__builtin_frame_address(0) - 128;
    volatile uint8_t *bottom = top - PAINTED_BYTES, *at;
    for (at = bottom; at < top; ++at) {
        *at = PAINT;
    }
    function();
    for (at = bottom; at < top && *at == PAINT; ++at) {
    }
    return (uint32_t)(top + 128 - at);
}

int main(void) {
    FILE *stream = fopen("windows.pcm", "rb");
    if (!stream) {
        printf("error windows.pcm\n");
        return 1;
    }
    printf("memory %lu %lu\n", (unsigned long)sizeof memory, (unsigned long)sizeof frontend);
    while (fread(window, sizeof window, 1, stream) == 1) {
        uint32_t hear_stack = stack_of(hear);
        printf("input %lu %lu %lu\n", (unsigned long)hop_ticks, (unsigned long)finish_ticks,
               (unsigned long)crc32(tinyscene_input(&memory), TINYSCENE_INPUT_BYTES));
        uint32_t classify_stack = stack_of(classify);
        for (int32_t n = 0; n < count; ++n) {
            printf("layer %s %lu %lu\n", layers[n].name, (unsigned long)layers[n].ticks,
                   (unsigned long)layers[n].crc);
        }
        printf("logits");
        for (int32_t n = 0; n < TINYSCENE_OUTPUTS; ++n) {
            printf(" %d", logits[n]);
        }
        printf("\nstack %lu %lu\n", (unsigned long)hear_stack, (unsigned long)classify_stack);
    }
    printf("end\n");
    fclose(stream);
    return 0;
}
