/* The load generator of `python -m benchmarks.serving`: HTTP/1.1 over kept-alive connections, one thread, one core.
 *
 *   load PORT CONNECTIONS SECONDS PLAN [RATE] [CHECK_EVERY] [BACKOFF]
 *
 * PLAN is a file of requests with the answer that each must get (see `_load.py`, which writes it). Connection c sends
 * the requests c, c+1, c+2, ... in turn, so that connections that are open at once send different rows: an answer that
 * was given to the wrong one is found. Without RATE each connection sends as soon as it has its answer (closed loop).
 * With RATE, requests per second, they are due at random moments (a Poisson process, fixed seed), and the time of a
 * request counts from the moment it was due, also if no connection was free then. BACKOFF 1: a connection that was
 * refused (503, 429) waits as long as `Retry-After` says before it sends again, as a polite client does.
 *
 * Written in C because a generator in Python answers at most as many requests as the server that it shall measure; wrk
 * tells neither refused from answered in its latencies, nor which connection got whose answer. Prints JSON.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { STATUS_ONLY = 0, RAW_TAIL = 1, JSON_NUMBERS = 2 };
enum { IDLE, BUSY, WAITING, DEAD };

typedef struct {
    char *bytes, *marker;
    float *expected;
    uint32_t size, mode, marker_size, count;
} Request;

typedef struct {
    int fd, state, watches_writes;
    size_t turn, written, filled, room, scanned;
    char *buffer;
    double begun, due, wake;
} Connection;

typedef struct {
    float *values;
    size_t count, room;
} Samples;

static Request *requests;
static uint32_t request_count;
static Connection *connections;
static int connection_count, poller, port, backs_off;
static size_t check_every = 1, answered, ok, refused, other, wrong, broken, checked;
static size_t statuses[1000];
static Samples ok_times, refused_times;
static size_t timeline[4096];
static double started, ends;
static char first_wrong[400];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *take(void *old, size_t size) {
    void *got = realloc(old, size);
    if (!got) fail("memory");
    return got;
}

static void keep(Samples *samples, double seconds) {
    if (samples->count == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 1 << 16;
        samples->values = take(samples->values, samples->room * sizeof(float));
    }
    samples->values[samples->count++] = (float)seconds;
}

static void read_or_fail(FILE *file, void *to, size_t size) {
    if (size && fread(to, 1, size, file) != size) fail("the plan is cut short");
}

static void load_plan(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    read_or_fail(file, &request_count, 4);
    requests = take(NULL, request_count * sizeof(Request));
    for (uint32_t i = 0; i < request_count; i++) {
        Request *one = &requests[i];
        uint32_t head[4];
        read_or_fail(file, head, sizeof head);
        one->size = head[0], one->mode = head[1], one->marker_size = head[2], one->count = head[3];
        one->bytes = take(NULL, one->size + 1);
        one->marker = take(NULL, one->marker_size + 1);
        one->expected = take(NULL, (one->count + 1) * sizeof(float));
        read_or_fail(file, one->bytes, one->size);
        read_or_fail(file, one->marker, one->marker_size);
        read_or_fail(file, one->expected, one->count * sizeof(float));
        one->marker[one->marker_size] = 0;
    }
    fclose(file);
}

static int is_close(float got, float want) {
    return fabsf(got - want) <= 1e-3f * fabsf(want) + 1e-4f; /* false for NaN */
}

static int is_right(const Request *request, char *body, size_t size) {
    if (request->mode == RAW_TAIL) {
        size_t bytes = request->count * sizeof(float);
        if (size < bytes) return 0;
        const char *tail = body + size - bytes;
        if (memcmp(tail, request->expected, bytes) == 0) return 1;
        for (uint32_t i = 0; i < request->count; i++) {
            float got;
            memcpy(&got, tail + i * sizeof(float), sizeof got);
            if (!is_close(got, request->expected[i])) return 0;
        }
        return 1;
    }
    if (request->mode == JSON_NUMBERS) {
        char saved = body[size], *at = body, *end;
        body[size] = 0; /* the buffer always has room for it */
        int right = !request->marker_size || (at = strstr(body, request->marker));
        if (right) at += request->marker_size;
        for (uint32_t i = 0; right && i < request->count; i++) {
            at += strspn(at, "[], \n\r\t:");
            float got = strtof(at, &end);
            right = end != at && is_close(got, request->expected[i]);
            at = end;
        }
        if (right) right = at[strspn(at, " \n\r\t")] == ']'; /* no number more than expected */
        body[size] = saved;
        return right;
    }
    return 1;
}

static void watch(Connection *connection, int writes) {
    struct epoll_event event = {.events = EPOLLIN | (writes ? EPOLLOUT : 0), .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event);
    connection->watches_writes = writes;
}

static int open_connection(Connection *connection) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        if (fd >= 0) close(fd);
        return 0;
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll");
    connection->fd = fd, connection->state = IDLE, connection->watches_writes = 0;
    connection->filled = connection->scanned = 0;
    return 1;
}

static void reopen(Connection *connection) {
    close(connection->fd);
    if (!open_connection(connection)) connection->state = DEAD, connection->wake = now() + 0.05, broken++;
}

static void push(Connection *connection) {
    const Request *request = &requests[connection->turn % request_count];
    while (connection->written < request->size) {
        ssize_t sent = send(connection->fd, request->bytes + connection->written, request->size - connection->written,
                            MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN && !connection->watches_writes) watch(connection, 1);
            return; /* an error shows itself when the answer is read */
        }
        connection->written += (size_t)sent;
    }
    if (connection->watches_writes) watch(connection, 0);
}

static void begin(Connection *connection, double due) {
    connection->state = BUSY, connection->begun = now(), connection->due = due > 0 ? due : connection->begun;
    connection->turn++, connection->written = connection->filled = connection->scanned = 0;
    push(connection);
}

/* Returns the value of a header in the head `[buffer, end)`, or NULL. `name` has its colon. */
static const char *header(const char *buffer, const char *end, const char *name) {
    size_t size = strlen(name);
    for (const char *line = buffer; line && line + size < end; line = memchr(line, '\n', (size_t)(end - line))) {
        if (*line == '\n') line++;
        if (line + size < end && strncasecmp(line, name, size) == 0) {
            line += size;
            while (*line == ' ') line++;
            return line;
        }
    }
    return NULL;
}

static void finish(Connection *connection, int status, char *body, size_t size, double retry_after, int closes) {
    const Request *request = &requests[connection->turn % request_count];
    double at = now();
    if (at <= ends) {
        answered++;
        statuses[status >= 0 && status < 1000 ? status : 0]++;
        size_t tick = (size_t)((at - started) * 10);
        if (status == 200) {
            int right = 1;
            if (ok % check_every == 0 || connection->turn <= 2 + (size_t)(connection - connections))
                right = is_right(request, body, size), checked++;
            if (!right) {
                if (!wrong) snprintf(first_wrong, sizeof first_wrong, "%.*s", (int)(size < 390 ? size : 390), body);
                wrong++;
            }
            ok++;
            if (tick < sizeof timeline / sizeof *timeline) timeline[tick]++;
            keep(&ok_times, at - connection->due);
        } else if (status == 503 || status == 429) {
            refused++, keep(&refused_times, at - connection->begun);
        } else {
            other++;
        }
    }
    connection->state = IDLE, connection->filled = 0;
    if (closes) reopen(connection);
    if (backs_off && (status == 503 || status == 429) && connection->state == IDLE)
        connection->state = WAITING, connection->wake = at + (retry_after >= 0 ? retry_after : 0.1);
}

/* Looks for a whole answer in the buffer. The size of a body is its content-length, or the chunks to the last one. */
static void look(Connection *connection) {
    char *buffer = connection->buffer;
    char *end = memmem(buffer, connection->filled, "\r\n\r\n", 4);
    if (!end) return;
    char *body = end + 4;
    size_t have = connection->filled - (size_t)(body - buffer), size = 0;
    const char *length = header(buffer, end, "content-length:"), *coding = header(buffer, end, "transfer-encoding:");
    if (length) {
        size = strtoul(length, NULL, 10);
        if (have < size) {
            size_t whole = (size_t)(body - buffer) + size + 2;
            if (whole > connection->room) {
                connection->buffer = take(buffer, whole);
                connection->room = whole;
            }
            return;
        }
    } else if (coding && strncasecmp(coding, "chunked", 7) == 0) {
        char *from = body, *to = body;
        for (;;) {
            char *line = memmem(from, connection->filled - (size_t)(from - buffer), "\r\n", 2);
            if (!line) return;
            size_t chunk = strtoul(from, NULL, 16);
            if ((size_t)(line + 2 - buffer) + chunk + 2 > connection->filled) return;
            if (chunk == 0) break;
            if ((size_t)(connection->filled) < 5 || memcmp(buffer + connection->filled - 5, "0\r\n\r\n", 5)) return;
            memmove(to, line + 2, chunk); /* only once the last chunk is here: moving destroys the framing */
            to += chunk, from = line + 2 + chunk + 2;
        }
        size = (size_t)(to - body);
    } else if (memcmp(buffer, "HTTP/1.1 204", 12) != 0) {
        fprintf(stderr, "load: an answer has neither a content-length nor chunks\n");
        exit(1);
    }
    const char *retry = header(buffer, end, "retry-after:"), *close_it = header(buffer, end, "connection:");
    int status = connection->filled > 12 ? atoi(buffer + 9) : 0;
    finish(connection, status, body, size, retry ? atof(retry) : -1, close_it && !strncasecmp(close_it, "close", 5));
}

static void pull(Connection *connection) {
    for (;;) {
        if (connection->room - connection->filled < 4096) {
            connection->room = connection->room ? 2 * connection->room : 1 << 14;
            connection->buffer = take(connection->buffer, connection->room);
        }
        size_t room = connection->room - connection->filled - 1;
        ssize_t got = recv(connection->fd, connection->buffer + connection->filled, room, 0);
        if (got > 0) {
            connection->filled += (size_t)got;
            if ((size_t)got == room) continue;
            if (connection->state == BUSY) look(connection);
            return;
        }
        if (got < 0 && errno == EAGAIN) {
            if (connection->state == BUSY) look(connection);
            return;
        }
        if (connection->state == BUSY && now() <= ends) broken++; /* an idle connection may be closed */
        reopen(connection);
        return;
    }
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_times(const char *name, Samples *samples) {
    size_t n = samples->count;
    qsort(samples->values, n, sizeof(float), by_value);
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += samples->values[i];
#define AT(share) (n ? (double)samples->values[(size_t)((double)(n - 1) * (share))] : 0.0)
    printf("\"%s\": {\"count\": %zu, \"mean_s\": %.9g, \"p50_s\": %.9g, \"p90_s\": %.9g, \"p99_s\": %.9g, "
           "\"p999_s\": %.9g, \"max_s\": %.9g}, ",
           name, n, n ? sum / (double)n : 0.0, AT(0.5), AT(0.9), AT(0.99), AT(0.999), AT(1.0));
}

int main(int argc, char **argv) {
    if (argc < 5) {
        fprintf(stderr, "load PORT CONNECTIONS SECONDS PLAN [RATE] [CHECK_EVERY] [BACKOFF]\n");
        return 2;
    }
    port = atoi(argv[1]), connection_count = atoi(argv[2]);
    double seconds = atof(argv[3]), rate = argc > 5 ? atof(argv[5]) : 0;
    if (argc > 6) check_every = strtoul(argv[6], NULL, 10);
    backs_off = argc > 7 && atoi(argv[7]);
    load_plan(argv[4]);
    poller = epoll_create1(0);
    connections = calloc((size_t)connection_count, sizeof(Connection));
    if (!connections) fail("memory");
    for (int i = 0; i < connection_count; i++) {
        connections[i].turn = (size_t)i;
        if (!open_connection(&connections[i])) fail("connect");
    }
    started = now(), ends = started + seconds;
    double next = started, waited = 0;
    size_t late = 0;
    srand48(1);
    struct epoll_event events[256];
    int next_free = 0, is_full = 0;
    for (;;) {
        double at = now();
        if (at >= ends) break;
        int is_scanned = rate > 0 || at - waited > 0.002;
        if (rate > 0 && next > at) is_full = 0;
        if (rate > 0)
            while (next <= at) {
                int tries = 0;
                while (tries < connection_count && connections[next_free].state != IDLE)
                    next_free = (next_free + 1) % connection_count, tries++;
                if (tries == connection_count) {
                    is_full = 1;
                    break; /* it stays due, and its time runs */
                }
                late += !is_full && at - next > 0.001; /* the generator's own fault: it had no core for itself */
                begin(&connections[next_free], next);
                next += -log(1.0 - drand48()) / rate;
            }
        if (is_scanned || !answered) {
            waited = at;
            for (int i = 0; i < connection_count; i++) {
                Connection *one = &connections[i];
                if (one->state == DEAD && one->wake <= at && !open_connection(one)) one->wake = at + 0.05;
                if (one->state == WAITING && one->wake <= at) one->state = IDLE;
                if (rate <= 0 && one->state == IDLE) begin(one, 0);
            }
        }
        int timeout = rate > 0 ? 0 : 2;
        int count = epoll_wait(poller, events, 256, timeout);
        for (int i = 0; i < count; i++) {
            Connection *one = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) push(one);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) pull(one);
            if (rate <= 0 && one->state == IDLE && now() < ends) begin(one, 0);
        }
    }
    double elapsed = now() - started, patience = now() + 5, stopped = now();
    size_t open = 1;
    while (open && now() < patience) { /* what was begun gets its answer, or is counted as never answered */
        open = 0;
        for (int i = 0; i < connection_count; i++) open += connections[i].state == BUSY;
        int count = open ? epoll_wait(poller, events, 256, 20) : 0;
        for (int i = 0; i < count; i++) {
            if (events[i].events & EPOLLOUT) push(events[i].data.ptr);
            pull(events[i].data.ptr);
        }
    }
    printf("{\"elapsed_s\": %.6f, \"ok\": %zu, \"refused\": %zu, \"other\": %zu, \"wrong\": %zu, \"checked\": %zu, "
           "\"broken\": %zu, \"unanswered\": %zu, \"late\": %zu, \"drain_s\": %.6f, ",
           elapsed, ok, refused, other, wrong, checked, broken, open, late, now() - stopped);
    print_times("answered", &ok_times);
    print_times("refusals", &refused_times);
    printf("\"statuses\": {");
    for (int i = 0, comma = 0; i < 1000; i++)
        if (statuses[i]) printf("%s\"%d\": %zu", comma++ ? ", " : "", i, statuses[i]);
    printf("}, \"timeline\": [");
    for (size_t i = 0; i < (size_t)(seconds * 10) && i < 4096; i++) printf("%s%zu", i ? ", " : "", timeline[i]);
    printf("], \"first_wrong\": \"");
    for (char *c = first_wrong; *c; c++)
        if (*c >= ' ' && *c < 127 && *c != '"' && *c != '\\') putchar(*c);
    printf("\"}\n");
    return 0;
}
