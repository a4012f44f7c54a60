/* The reader inside a container: does what it is told on standard input, and says how long that took.
 *
 * A file takes 10 us to open and read from the page cache. An interpreter's own time would be several times that and bring
 * every ratio near 1: so this is C, linked statically, and runs in any image.
 *
 *     walk               lists and lstats everything below / that is on its file system; remembers the regular files, sorted
 *     list FILE          remembers the files that FILE names, one a line
 *     read LEAST MOST    opens and reads the remembered files with LEAST <= size < MOST, to their ends
 *     crowd THREADS      reads all remembered files, that many at once
 *     chown OWNER        gives everything that walk saw to OWNER, as chown -R does
 *
 * Each answers with one line: COUNT NANOSECONDS BYTES. The first failure ends it, with a line on standard error.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { STEP = 128 << 10 }; /* as cat reads */

struct entry {
    char *path;
    long long size;
    int is_file;
};

static struct entry *entries;
static size_t count, room;
static dev_t device;
static atomic_size_t next_entry;
static atomic_llong crowd_bytes;

static void fail(const char *path) {
    fprintf(stderr, "reader: %s: %s\n", path, strerror(errno));
    exit(1);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void answer(size_t number, long long start, long long bytes) {
    printf("%zu %lld %lld\n", number, now() - start, bytes);
    fflush(stdout);
}

static void add(const char *path, long long size, int is_file) {
    if (count == room && !(entries = realloc(entries, (room = room ? 2 * room : 1024) * sizeof *entries))) fail("memory");
    entries[count++] = (struct entry){strdup(path), size, is_file};
}

static void forget(void) {
    while (count) free(entries[--count].path);
}

/* `path` is a buffer of PATH_MAX bytes, "" for the root. */
static void walk(char *path, size_t length) {
    DIR *directory = opendir(length ? path : "/");
    if (!directory) fail(path);
    for (struct dirent *found; (found = readdir(directory));) {
        struct stat status;
        if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, "..")) continue;
        size_t end = length + snprintf(path + length, PATH_MAX - length, "/%s", found->d_name);
        if (end >= PATH_MAX) errno = ENAMETOOLONG, fail(path);
        if (lstat(path, &status)) fail(path);
        /* Only directories tell their file system: overlayfs gives the files of each layer another one. */
        if (!S_ISDIR(status.st_mode) || status.st_dev == device) {
            add(path, status.st_size, S_ISREG(status.st_mode));
            if (S_ISDIR(status.st_mode)) walk(path, end);
        }
        path[length] = 0;
    }
    closedir(directory);
}

static int by_path(const void *one, const void *other) {
    return strcmp(((const struct entry *)one)->path, ((const struct entry *)other)->path);
}

static long long read_file(const char *path, char *buffer) {
    long long size = 0;
    ssize_t got;
    int file = open(path, O_RDONLY | O_NOFOLLOW);
    if (file < 0) fail(path);
    while ((got = read(file, buffer, STEP)) > 0) size += got;
    if (got < 0 || close(file)) fail(path);
    return size;
}

static void *crowd(void *unused) {
    (void)unused;
    char *buffer = malloc(STEP);
    for (size_t index; (index = next_entry++) < count;) crowd_bytes += read_file(entries[index].path, buffer);
    free(buffer);
    return NULL;
}

static void list(const char *name) {
    char path[PATH_MAX];
    FILE *file = fopen(name, "r");
    if (!file) fail(name);
    while (fgets(path, sizeof path, file)) {
        path[strcspn(path, "\n")] = 0;
        add(path, 0, 1);
    }
    fclose(file);
}

int main(void) {
    char line[PATH_MAX + 16], path[PATH_MAX] = "", *buffer = malloc(STEP);
    long long least, most;
    unsigned number;
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        long long start = now(), bytes = 0;
        size_t done = 0;
        if (!strcmp(line, "walk")) {
            struct stat root;
            forget();
            start = now();
            if (lstat("/", &root)) fail("/");
            device = root.st_dev;
            walk(path, 0);
            answer(count, start, 0);
            qsort(entries, count, sizeof *entries, by_path);
        } else if (!strncmp(line, "list ", 5)) {
            forget();
            list(line + 5);
            answer(count, start, 0);
        } else if (sscanf(line, "read %lld %lld", &least, &most) == 2) {
            for (size_t index = 0; index < count; index++) {
                struct entry *entry = entries + index;
                if (!entry->is_file || entry->size < least || entry->size >= most) continue;
                bytes += read_file(entry->path, buffer);
                done++;
            }
            answer(done, start, bytes);
        } else if (sscanf(line, "crowd %u", &number) == 1 && number <= 1024) {
            pthread_t threads[1024];
            next_entry = 0;
            crowd_bytes = 0;
            for (unsigned index = 0; index < number; index++)
                if ((errno = pthread_create(threads + index, NULL, crowd, NULL))) fail("thread");
            for (unsigned index = 0; index < number; index++) pthread_join(threads[index], NULL);
            answer(count, start, crowd_bytes);
        } else if (sscanf(line, "chown %u", &number) == 1) {
            for (size_t index = 0; index < count; index++)
                if (lchown(entries[index].path, number, number)) fail(entries[index].path);
            answer(count, start, 0);
        } else {
            errno = EINVAL, fail(line);
        }
    }
    return 0;
}
