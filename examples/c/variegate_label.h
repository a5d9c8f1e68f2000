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
 * A port is for one thread at a time. Functions return 0, a status of the device (VG_E_*, positive), or -errno when
 * the connection failed; after that, and after VG_E_INPUT for a malformed head or VG_E_TOO_LARGE, close and open again.
 */
#ifndef VARIEGATE_LABEL_H
#define VARIEGATE_LABEL_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
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

static inline int vg_send_all(int fd, const void *data, size_t size) {
    const unsigned char *at = (const unsigned char *)data;
    while (size > 0) {
        ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            return -errno;
        }
        at += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static inline int vg_receive_all(int fd, void *data, size_t size) {
    unsigned char *at = (unsigned char *)data;
    while (size > 0) {
        ssize_t got = recv(fd, at, size, 0);
        if (got < 0) {
            if (errno == EINTR) continue;
            return -errno;
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

/* Connects and reads what the device takes. timeout_ms bounds every later wait; 0 waits for ever. */
static inline int vg_open(vg_label_port *port, const char *path, unsigned timeout_ms) {
    struct sockaddr_un address;
    struct timeval wait;
    unsigned char hello[VG_HELLO_BYTES];
    uint64_t size;
    int error;

    memset(port, 0, sizeof *port);
    port->fd = -1;
    if (strlen(path) >= sizeof address.sun_path) return -ENAMETOOLONG;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path, strlen(path));
    port->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (port->fd < 0) return -errno;
    wait.tv_sec = (time_t)(timeout_ms / 1000u);
    wait.tv_usec = (suseconds_t)((timeout_ms % 1000u) * 1000u);
    if (setsockopt(port->fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) ||
        setsockopt(port->fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) ||
        connect(port->fd, (const struct sockaddr *)&address, sizeof address)) {
        error = -errno;
        vg_close(port);
        return error;
    }
    error = vg_receive_all(port->fd, hello, sizeof hello);
    if (!error) {
        port->dtype = hello[6];
        port->shape[0] = vg_get32(hello + 8);
        port->shape[1] = vg_get32(hello + 12);
        port->shape[2] = vg_get32(hello + 16);
        port->classes = vg_get32(hello + 20);
        port->max_batch = vg_get32(hello + 24);
        port->frame_bytes = vg_get32(hello + 28);
        size = (uint64_t)port->max_batch * port->frame_bytes;
        if (memcmp(hello, "VGH1", 4) || hello[4] != VG_VERSION || hello[5] != 0 || hello[7] != 3 ||
            (port->dtype != VG_UINT8 && port->dtype != VG_FLOAT32) || size == 0 || size > SIZE_MAX / 2)
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
    uint32_t id = port->next_id++, status, i;
    int error;

    if (retry_ms) *retry_ms = VG_NO_RETRY;
    if (port->fd < 0) return -EBADF;
    if (count == 0 || count > port->max_batch) return VG_E_TOO_LARGE; /* nothing was sent */
    memcpy(head, "VGQ1", 4);
    vg_put32(head + 4, id);
    vg_put32(head + 8, count);
    vg_put32(head + 12, 0);
    error = vg_send_all(port->fd, head, VG_QUERY_BYTES);
    if (!error) error = vg_send_all(port->fd, frames, (size_t)count * port->frame_bytes);
    if (!error) error = vg_receive_all(port->fd, head, VG_ANSWER_BYTES);
    if (error) return error;
    status = vg_get32(head + 8);
    if (memcmp(head, "VGA1", 4) || vg_get32(head + 4) != id || status > 255 ||
        vg_get32(head + 16) != (status == VG_OK ? count : 0))
        return -EPROTO;
    if (retry_ms) *retry_ms = vg_get32(head + 12);
    if (status != VG_OK) return (int)status;
    for (i = 0; i < count; i++) {
        error = vg_receive_all(port->fd, one, sizeof one);
        if (error) return error;
        labels[i] = vg_get32(one);
    }
    return 0;
}

#endif
