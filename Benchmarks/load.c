/* What the benchmarks time, without an interpreter in the way. Prints one number: a rate per second,
 * bytes where bytes are moved, else operations. Usage:
 *     load create|stat|unlink DIRECTORY COUNT THREADS     (each thread has a directory of its own)
 *     load fill DIRECTORY COUNT THREADS EACH               (small files, EACH to a directory)
 *     load stat-again DIRECTORY COUNT ROUNDS
 *     load read|write FILE BYTES BLOCK                    (write makes the file)
 *     load rewrite FILE BYTES BLOCK                       (all of a file just written, still open)
 *     load random-read|random-write FILE BYTES COUNT      (4 KiB each; random-write as rewrite)
 *     load reopen FILE BYTES                              (open for writing + 4 KiB: milliseconds)
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS_MAX = 64, BLOCK_MAX = 16 << 20 };
static char buffer[BLOCK_MAX] __attribute__((aligned(PAGE)));
static const char *directory;
static long count;
static void (*operation)(const char *);

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static uint64_t draw(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void create_one(const char *path) {
    int file = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
    if (file < 0 || write(file, buffer, PAGE) != PAGE || close(file)) err(1, "%s", path);
}

static void stat_one(const char *path) {
    struct stat facts;
    if (stat(path, &facts)) err(1, "%s", path);
}

static void unlink_one(const char *path) {
    if (unlink(path)) err(1, "%s", path);
}

static void *in_one_directory(void *number) {
    char path[PAGE];
    for (long index = 0; index < count; index++) {
        snprintf(path, sizeof path, "%s/%ld/file-%06ld", directory, (long)number, index);
        operation(path);
    }
    return NULL;
}

static double in_directories(long threads) {
    pthread_t thread[THREADS_MAX];
    char path[PAGE];
    if (operation == create_one) {
        for (long number = 0; number < threads; number++) {
            snprintf(path, sizeof path, "%s/%ld", directory, number);
            if (mkdir(path, 0755)) err(1, "%s", path);
        }
    }
    count /= threads;
    double begin = now();
    for (long number = 0; number < threads; number++)
        if (pthread_create(&thread[number], NULL, in_one_directory, (void *)number))
            errx(1, "no thread");
    for (long number = 0; number < threads; number++) pthread_join(thread[number], NULL);
    return count * threads / (now() - begin);
}

static long each, threads_filling;

static void *in_many_directories(void *number) {
    char path[PAGE], text[64];
    for (long place = (long)number; place < count / each; place += threads_filling) {
        snprintf(path, sizeof path, "%s/directory-%04ld", directory, place);
        if (mkdir(path, 0755)) err(1, "%s", path);
        for (long index = 0; index < each; index++) {
            snprintf(path, sizeof path, "%s/directory-%04ld/file-%06ld", directory, place, index);
            int length = snprintf(text, sizeof text, "file %ld of %ld\n", index, place);
            int file = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
            if (file < 0 || write(file, text, length) != length || close(file)) err(1, "%s", path);
        }
    }
    return NULL;
}

static double fill_directories(long threads) {
    pthread_t thread[THREADS_MAX];
    threads_filling = threads;
    double begin = now();
    for (long number = 0; number < threads; number++)
        if (pthread_create(&thread[number], NULL, in_many_directories, (void *)number))
            errx(1, "no thread");
    for (long number = 0; number < threads; number++) pthread_join(thread[number], NULL);
    return count / (now() - begin);
}

static double stat_again(long rounds) {
    operation = stat_one;
    in_one_directory((void *)0);
    double begin = now();
    for (long round = 0; round < rounds; round++) in_one_directory((void *)0);
    return count * rounds / (now() - begin);
}

static void fill(int file, long bytes, long block) {
    for (long offset = 0; offset < bytes; offset += block)
        if (pwrite(file, buffer, block, offset) != block) err(1, "write");
}

static double move(const char *what, const char *path, long bytes, long block) {
    int reads = !strcmp(what, "read");
    int file = open(path, reads ? O_RDONLY : O_CREAT | O_EXCL | O_RDWR, 0644);
    if (file < 0) err(1, "%s", path);
    if (!strcmp(what, "rewrite")) fill(file, bytes, block);
    double begin = now();
    if (reads) {
        for (long offset = 0; offset < bytes; offset += block)
            if (pread(file, buffer, block, offset) != block) errx(1, "%s is short", path);
    } else {
        fill(file, bytes, block);
    }
    double seconds = now() - begin;
    if (close(file)) err(1, "%s", path);
    return bytes / seconds;
}

static double scatter(const char *what, const char *path, long bytes, long times) {
    int reads = !strcmp(what, "random-read");
    int file = open(path, reads ? O_RDONLY : O_CREAT | O_EXCL | O_RDWR, 0644);
    if (file < 0) err(1, "%s", path);
    if (!reads) fill(file, bytes, 1 << 20);
    double begin = now();
    for (long done = 0; done < times; done++) {
        off_t offset = draw() % (bytes / PAGE) * PAGE;
        ssize_t moved = reads ? pread(file, buffer, PAGE, offset) : pwrite(file, buffer, PAGE, offset);
        if (moved != PAGE) err(1, "%s", path);
    }
    double seconds = now() - begin;
    if (close(file)) err(1, "%s", path);
    return times / seconds;
}

static double reopen(const char *path, long bytes) {
    double begin = now();
    int file = open(path, O_RDWR);
    if (file < 0 || pwrite(file, buffer, PAGE, bytes / 2 / PAGE * PAGE) != PAGE) err(1, "%s", path);
    double seconds = now() - begin;
    if (close(file)) err(1, "%s", path);
    return seconds * 1000;
}

int main(int argc, char **argv) {
    if (argc < 4) errx(2, "usage: see load.c");
    const char *what = argv[1];
    directory = argv[2];
    count = atol(argv[3]);
    long last = argc > 4 ? atol(argv[4]) : 1;
    double result;
    // Content that no sparse file, nor another file, has.
    draw();
    for (size_t offset = 0; offset < sizeof buffer; offset += 8)
        *(uint64_t *)(buffer + offset) = draw() + getpid();
    if (last < 1 || count < 1) errx(2, "usage: see load.c");
    if (!strcmp(what, "create") || !strcmp(what, "stat") || !strcmp(what, "unlink")) {
        if (last > THREADS_MAX) errx(2, "at most %d threads", THREADS_MAX);
        operation = *what == 'c' ? create_one : *what == 's' ? stat_one : unlink_one;
        result = in_directories(last);
    } else if (!strcmp(what, "fill")) {
        each = argc > 5 ? atol(argv[5]) : 1000;
        if (last > THREADS_MAX || each < 1) errx(2, "usage: see load.c");
        result = fill_directories(last);
    } else if (!strcmp(what, "stat-again")) {
        result = stat_again(last);
    } else if (!strcmp(what, "read") || !strcmp(what, "write") || !strcmp(what, "rewrite")) {
        if (last > BLOCK_MAX) errx(2, "blocks of at most %d bytes", BLOCK_MAX);
        result = move(what, directory, count, last);
    } else if (!strcmp(what, "random-read") || !strcmp(what, "random-write")) {
        result = scatter(what, directory, count, last);
    } else if (!strcmp(what, "reopen")) {
        result = reopen(directory, count);
    } else {
        errx(2, "usage: see load.c");
    }
    printf("%.6g\n", result);
    return 0;
}
