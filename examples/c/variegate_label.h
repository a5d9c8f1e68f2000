/* SPDX-License-Identifier: Apache-2.0
 *
 * Labels from a Variegate device over its Unix socket (`variegate device serve FOLDER --socket PATH`).
 * One header, C99 and POSIX, nothing else to link. The protocol is described in docs/label-socket.md.
 *
 *     vg_label_port port;
 *     int error = vg_open(&port, "/run/camera7.labels", 5000);
 *     if (!error) error = vg_classify(&port, frames, 1, labels, &retry_ms);
 *     vg_close(&port);
 *
 * With -std=c99 define _POSIX_C_SOURCE as 200809L before the first include.
 *
 * A port is for one thread at a time. Functions return 0, a status of the device (VG_E_*, positive), or -errno when
 * the connection failed; after that, and after VG_E_INPUT for a malformed head or VG_E_TOO_LARGE, close and open again.
 */
#ifndef VARIEGATE_LABEL_H
#define VARIEGATE_LABEL_H

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    VG_OK = 0,
    VG_E_INPUT = 1,       /* the frames are wrong, for example a float outside of [0, 1] */
    VG_E_TOO_LARGE = 2,   /* more frames than max_batch */
    VG_E_RATE = 3,        /* the signed rate: ask again after retry_ms */
    VG_E_SPENT = 4,       /* the signed budget is spent, for ever */
    VG_E_NOT_CURRENT = 5, /* the copy has expired or was replaced */
    VG_E_DOWN = 6,        /* no answer from the device; the query may have been charged */
    VG_E_BUSY = 7,        /* too many queries are waiting: ask again after retry_ms */
    VG_E_CLOSING = 8      /* the device is closed or closing */
};

enum { VG_UINT8 = 1, VG_FLOAT32 = 2 };

#define VG_VERSION 1u
#define VG_NO_RETRY 0xFFFFFFFFu
#define VG_HELLO_BYTES 32u
#define VG_QUERY_BYTES 16u
#define VG_ANSWER_BYTES 24u

typedef struct {
    int fd;
    unsigned timeout_ms;  /* for each call as a whole; 0 waits for ever */
    uint32_t next_id;
    uint8_t dtype;        /* VG_UINT8 or VG_FLOAT32 */
    uint32_t shape[3];    /* channels, height, width */
    uint32_t classes;     /* labels are 0 .. classes - 1 */
    uint32_t max_batch;   /* frames in one query */
    uint32_t frame_bytes; /* bytes of one frame; float32 is little-endian */
} vg_label_port;

static inline uint32_t vg_get32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void vg_put32(unsigned char *p, uint32_t v) {
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
    p[2] = (unsigned char)(v >> 16);
    p[3] = (unsigned char)(v >> 24);
}

static inline int64_t vg_now_ms(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now)) return 0;
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* When a call that begins now must have ended; -1 for never. */
static inline int64_t vg_deadline(unsigned timeout_ms) { return timeout_ms ? vg_now_ms() + (int64_t)timeout_ms : -1; }

static inline int vg_wait(int fd, short events, int64_t deadline) {
    struct pollfd one;
    one.fd = fd;
    one.events = events;
    one.revents = 0;
    for (;;) {
        int64_t left = deadline < 0 ? -1 : deadline - vg_now_ms();
        int ready;
        if (deadline >= 0 && left <= 0) return -ETIMEDOUT;
        ready = poll(&one, 1, left > 60000 ? 60000 : (int)left);
        if (ready > 0) return 0;
        if (ready < 0 && errno != EINTR) return -errno;
    }
}

static inline int vg_send_all(int fd, const void *data, size_t size, int64_t deadline) {
    const unsigned char *at = (const unsigned char *)data;
    while (size > 0) {
        ssize_t sent = send(fd, at, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            int error = errno == EINTR ? 0
                        : errno == EAGAIN || errno == EWOULDBLOCK ? vg_wait(fd, POLLOUT, deadline)
                                                                  : -errno;
            if (error) return error;
            continue;
        }
        at += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static inline int vg_receive_all(int fd, void *data, size_t size, int64_t deadline) {
    unsigned char *at = (unsigned char *)data;
    while (size > 0) {
        ssize_t got = recv(fd, at, size, MSG_DONTWAIT);
        if (got < 0) {
            int error = errno == EINTR ? 0
                        : errno == EAGAIN || errno == EWOULDBLOCK ? vg_wait(fd, POLLIN, deadline)
                                                                  : -errno;
            if (error) return error;
            continue;
        }
        if (got == 0) return -ECONNRESET;
        at += got;
        size -= (size_t)got;
    }
    return 0;
}

static inline void vg_close(vg_label_port *port) {
    if (port->fd >= 0) close(port->fd);
    port->fd = -1;
}

/* Connects and reads what the device takes. timeout_ms bounds this call and each later one as a whole (-ETIMEDOUT;
 * -EAGAIN while connecting); 0 waits for ever. */
static inline int vg_open(vg_label_port *port, const char *path, unsigned timeout_ms) {
    struct sockaddr_un address;
    struct timeval wait;
    unsigned char hello[VG_HELLO_BYTES];
    uint64_t size, frame;
    int64_t deadline = vg_deadline(timeout_ms);
    int error, side;

    memset(port, 0, sizeof *port);
    port->timeout_ms = timeout_ms;
    port->fd = -1;
    if (strlen(path) >= sizeof address.sun_path) return -ENAMETOOLONG;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path, strlen(path));
    port->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (port->fd < 0) return -errno;
    wait.tv_sec = (time_t)(timeout_ms / 1000u);
    wait.tv_usec = (suseconds_t)((timeout_ms % 1000u) * 1000u);
    /* The one wait that poll does not do: a Unix socket connects at once or sleeps until the server accepts. */
    if (setsockopt(port->fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) ||
        connect(port->fd, (const struct sockaddr *)&address, sizeof address)) {
        error = -errno;
        vg_close(port);
        return error;
    }
    error = vg_receive_all(port->fd, hello, sizeof hello, deadline);
    if (!error) {
        port->dtype = hello[6];
        port->shape[0] = vg_get32(hello + 8);
        port->shape[1] = vg_get32(hello + 12);
        port->shape[2] = vg_get32(hello + 16);
        port->classes = vg_get32(hello + 20);
        port->max_batch = vg_get32(hello + 24);
        port->frame_bytes = vg_get32(hello + 28);
        size = (uint64_t)port->max_batch * port->frame_bytes;
        /* The caller may size its buffers by the shape, and frame_bytes are read from them. */
        frame = port->dtype == VG_FLOAT32 ? 4 : 1;
        for (side = 0; side < 3; side++) frame = frame > UINT32_MAX ? 0 : frame * port->shape[side];
        if (memcmp(hello, "VGH1", 4) || hello[4] != VG_VERSION || hello[5] != 0 || hello[7] != 3 ||
            (port->dtype != VG_UINT8 && port->dtype != VG_FLOAT32) || frame != port->frame_bytes ||
            size == 0 || size > SIZE_MAX / 2)
            error = -EPROTO;
    }
    if (error) vg_close(port);
    return error;
}

/* Asks for the labels of `count` frames, each frame_bytes long, one after another. All are answered or none is.
 * retry_ms, if not NULL, gets the wait after which asking again may help, or VG_NO_RETRY. */
static inline int vg_classify(vg_label_port *port, const void *frames, uint32_t count, uint32_t *labels,
                              uint32_t *retry_ms) {
    unsigned char head[VG_ANSWER_BYTES];
    unsigned char one[4];
    int64_t deadline = vg_deadline(port->timeout_ms);
    uint32_t id = port->next_id++, status, i;
    int error;

    if (retry_ms) *retry_ms = VG_NO_RETRY;
    if (port->fd < 0) return -EBADF;
    if (count == 0 || count > port->max_batch) return VG_E_TOO_LARGE; /* nothing was sent */
    memcpy(head, "VGQ1", 4);
    vg_put32(head + 4, id);
    vg_put32(head + 8, count);
    vg_put32(head + 12, 0);
    error = vg_send_all(port->fd, head, VG_QUERY_BYTES, deadline);
    if (!error) error = vg_send_all(port->fd, frames, (size_t)count * port->frame_bytes, deadline);
    if (!error) error = vg_receive_all(port->fd, head, VG_ANSWER_BYTES, deadline);
    if (error) return error;
    status = vg_get32(head + 8);
    if (memcmp(head, "VGA1", 4) || vg_get32(head + 4) != id || status > 255 ||
        vg_get32(head + 16) != (status == VG_OK ? count : 0))
        return -EPROTO;
    if (retry_ms) *retry_ms = vg_get32(head + 12);
    if (status != VG_OK) return (int)status;
    for (i = 0; i < count; i++) {
        error = vg_receive_all(port->fd, one, sizeof one, deadline);
        if (error) return error;
        labels[i] = vg_get32(one);
    }
    return 0;
}

#endif
