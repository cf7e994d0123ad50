#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

#include <cstdlib>

#include "Session.hpp"

ctorrent_result ctorrent_punch_hole(int descriptor, uint64_t offset, uint64_t bytes) {
    int const mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return ::fallocate(descriptor, mode, off_t(offset), off_t(bytes)) == 0 ? CTORRENT_OK
                                                                            : CTORRENT_FAILED;
}

void ctorrent_name_this_thread(char const* name) {
    ::pthread_setname_np(::pthread_self(), name);
}

namespace {

/// `discard`: below 1024, so no ordinary program of this machine can send from it.
constexpr in_port_t discard_port = 9;

void silence_if_bound(int descriptor, in_port_t port) {
    int type = 0;
    socklen_t length = sizeof type;
    if (::getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != SOCK_DGRAM)
        return;
    sockaddr_storage address{};
    length = sizeof address;
    auto* any = reinterpret_cast<sockaddr*>(&address);
    if (::getsockname(descriptor, any, &length) != 0) return;
    in_port_t* bound = address.ss_family == AF_INET
                           ? &reinterpret_cast<sockaddr_in*>(&address)->sin_port
                       : address.ss_family == AF_INET6
                           ? &reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                           : nullptr;
    if (bound == nullptr || *bound != htons(port)) return;
    *bound = htons(discard_port);
    ::connect(descriptor, any, length);
}

}  // namespace

void ctorrent::silence_udp(std::uint16_t port) {
    DIR* descriptors = ::opendir("/proc/self/fd");
    if (descriptors == nullptr) return;
    while (dirent const* entry = ::readdir(descriptors))
        silence_if_bound(std::atoi(entry->d_name), port);
    ::closedir(descriptors);
}
