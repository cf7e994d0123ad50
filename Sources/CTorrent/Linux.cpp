#include <fcntl.h>
#include <pthread.h>

#include "CTorrent.h"

ctorrent_result ctorrent_punch_hole(int descriptor, uint64_t offset, uint64_t bytes) {
    int const mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return ::fallocate(descriptor, mode, off_t(offset), off_t(bytes)) == 0 ? CTORRENT_OK
                                                                            : CTORRENT_FAILED;
}

void ctorrent_name_this_thread(char const* name) {
    ::pthread_setname_np(::pthread_self(), name);
}
