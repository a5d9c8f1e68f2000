/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints one label a line for raw frames on standard input:
 *
 *     example /run/camera7.labels < frames.raw
 *
 * Exit status: 0 when every frame got a label, 1 when the device refused, 2 for wrong usage or a broken connection
 * or a last frame that is not whole (the frames before it get theirs).
 */
#define _POSIX_C_SOURCE 200809L

#include "variegate_label.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { TIMEOUT_MS = 10000, LONGEST_WAIT_MS = 60000 };

/* Asks again where the device says when that may help. */
static int ask(vg_label_port *port, const void *frames, uint32_t count, uint32_t *labels) {
    uint32_t left = LONGEST_WAIT_MS;
    for (;;) {
        uint32_t retry_ms;
        int status = vg_classify(port, frames, count, labels, &retry_ms);
        if ((status != VG_E_RATE && status != VG_E_BUSY) || retry_ms > left) return status;
        struct timespec wait = {(time_t)(retry_ms / 1000), (long)(retry_ms % 1000) * 1000000L};
        nanosleep(&wait, NULL);
        left -= retry_ms;
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s SOCKET < FRAMES\n", argv[0]);
        return 2;
    }
    vg_label_port port;
    int wrong = 0;
    int status = vg_open(&port, argv[1], TIMEOUT_MS);
    if (status) {
        fprintf(stderr, "cannot use %s: %s\n", argv[1], strerror(-status));
        return 2;
    }
    unsigned char *frames = malloc((size_t)port.max_batch * port.frame_bytes);
    uint32_t *labels = calloc(port.max_batch, sizeof *labels);
    if (!frames || !labels) {
        fprintf(stderr, "out of memory\n");
        status = 2;
    }
    size_t rest = 0;
    while (!status && !rest) {
        size_t got = fread(frames, 1, (size_t)port.max_batch * port.frame_bytes, stdin);
        size_t count = got / port.frame_bytes;
        rest = got % port.frame_bytes;
        if (count == 0) break;
        status = ask(&port, frames, (uint32_t)count, labels);
        for (size_t i = 0; !status && i < count; i++) printf("%lu\n", (unsigned long)labels[i]);
    }
    if (!status && (rest || ferror(stdin))) {
        fprintf(stderr, rest ? "the input ends within a frame\n" : "the input cannot be read\n");
        wrong = 1;
    }
    if (status > 0) fprintf(stderr, "the device refused: status %d\n", status);
    if (status < 0) fprintf(stderr, "connection failed: %s\n", strerror(-status));
    free(labels);
    free(frames);
    vg_close(&port);
    return status == 0 ? (wrong ? 2 : 0) : status > 0 ? 1 : 2;
}
