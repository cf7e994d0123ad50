// libgit2 1.5 as packaged by Debian, and zlib, which it stands on. No policy here.
#ifndef DELUGEFS_CGIT_SHIM_H
#define DELUGEFS_CGIT_SHIM_H

#include <git2.h>
#include <git2/sys/mempack.h>
#include <git2/sys/odb_backend.h>
#include <git2/sys/repository.h>
#include <malloc.h>
#include <zlib.h>

// git_libgit2_opts is variadic, which Swift cannot call: one wrapper for each shape of arguments.

static inline int cgit_option_size(int option, size_t value) {
    return git_libgit2_opts(option, value);
}

static inline int cgit_option_flag(int option, int enabled) {
    return git_libgit2_opts(option, enabled);
}

static inline int cgit_option_cache_object_limit(git_object_t kind, size_t bytes) {
    return git_libgit2_opts(GIT_OPT_SET_CACHE_OBJECT_LIMIT, kind, bytes);
}

static inline int cgit_option_cache_bytes(ssize_t bytes) {
    return git_libgit2_opts(GIT_OPT_SET_CACHE_MAX_SIZE, bytes);
}

static inline int cgit_option_search_path(git_config_level_t level, const char *path) {
    return git_libgit2_opts(GIT_OPT_SET_SEARCH_PATH, level, path);
}

// The initialisers are macros with braces, which Swift does not import.

static inline int cgit_inflate_init(z_stream *stream) {
    return inflateInit(stream);
}

// <malloc.h> is in no module of Swift's.

static inline void cgit_release_memory(void) {
    malloc_trim(0);
}

#endif
