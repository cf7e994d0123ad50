#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
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

/// Calls `body` with this process's sockets of a type that are bound to a port, and their address;
/// libtorrent does not tell the descriptors of its own.
template <typename Body>
void for_each_socket(int wanted, in_port_t port, Body body) {
    DIR* descriptors = ::opendir("/proc/self/fd");
    if (descriptors == nullptr) return;
    while (dirent const* entry = ::readdir(descriptors)) {
        int const descriptor = std::atoi(entry->d_name);
        int type = 0;
        socklen_t length = sizeof type;
        if (::getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != wanted)
            continue;
        sockaddr_storage address{};
        length = sizeof address;
        if (::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &length) != 0)
            continue;
        in_port_t* bound = address.ss_family == AF_INET
                               ? &reinterpret_cast<sockaddr_in*>(&address)->sin_port
                           : address.ss_family == AF_INET6
                               ? &reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                               : nullptr;
        if (bound != nullptr && *bound == htons(port)) body(descriptor, address, length, bound);
    }
    ::closedir(descriptors);
}

/// Where a packet's sender stands, from the beginning of its IP header.
constexpr std::uint32_t v4_sender = std::uint32_t(SKF_NET_OFF) + 12;
constexpr std::uint32_t v6_sender = std::uint32_t(SKF_NET_OFF) + 8;
constexpr std::uint32_t whole_packet = ~std::uint32_t(0);

sock_filter load(std::uint32_t offset) { return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset); }
sock_filter pass(std::uint32_t bytes) { return BPF_STMT(BPF_RET | BPF_K, bytes); }
sock_filter unless(std::uint32_t word, std::uint8_t skipped) {
    return BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, word, 0, skipped);
}

/// Lets packets of the first `count` senders of a family through.
std::vector<sock_filter> make_filter(ctorrent::Senders const& senders, bool v6, size_t count) {
    std::vector<sock_filter> program;
    if (v6) {
        for (std::uint32_t word = 0; word < 4; ++word) {
            program.push_back(load(v6_sender + 4 * word));
            program.push_back(BPF_STMT(BPF_ST, word));
        }
        for (size_t i = 0; i < count; ++i) {
            for (std::uint32_t word = 0; word < 4; ++word) {
                program.push_back(BPF_STMT(BPF_LD | BPF_MEM, word));
                program.push_back(unless(senders.v6[i][word], std::uint8_t(7 - 2 * word)));
            }
            program.push_back(pass(whole_packet));
        }
    } else {
        program.push_back(load(v4_sender));
        for (size_t i = 0; i < count; ++i) {
            program.push_back(unless(senders.v4[i], 1));
            program.push_back(pass(whole_packet));
        }
    }
    program.push_back(pass(0));
    return program;
}

bool attach(int descriptor, ctorrent::Senders const& senders, bool v6) {
    for (size_t count = v6 ? senders.v6.size() : senders.v4.size();; count /= 2) {
        auto program = make_filter(senders, v6, count);
        if (program.size() <= BPF_MAXINSNS) {
            sock_fprog const filter = {static_cast<unsigned short>(program.size()),
                                       program.data()};
            if (::setsockopt(descriptor, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) == 0)
                return true;
            // The rest is about its length: net.core.optmem_max.
            if (errno != ENOMEM) return false;
        }
        if (count == 0) return false;
    }
}

}  // namespace

void ctorrent::silence_udp(std::uint16_t port) {
    for_each_socket(SOCK_DGRAM, port,
                    [](int descriptor, sockaddr_storage& address, socklen_t length,
                       in_port_t* bound) {
                        *bound = htons(discard_port);
                        ::connect(descriptor, reinterpret_cast<sockaddr*>(&address), length);
                    });
}

void ctorrent::Senders::add(std::string const& address) {
    in_addr four{};
    in6_addr six{};
    if (::inet_pton(AF_INET, address.c_str(), &four) == 1) {
        v4.push_back(ntohl(four.s_addr));
    } else if (::inet_pton(AF_INET6, address.c_str(), &six) == 1) {
        IPv6 words{};
        for (size_t word = 0; word < words.size(); ++word)
            words[word] = ntohl(six.s6_addr32[word]);
        v6.push_back(words);
    }
}

void ctorrent::shut_listeners(std::uint16_t port) {
    for_each_socket(SOCK_STREAM, port,
                    [](int descriptor, sockaddr_storage&, socklen_t, in_port_t*) {
                        int listens = 0;
                        socklen_t length = sizeof listens;
                        ::getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length);
                        if (listens != 0) ::shutdown(descriptor, SHUT_RDWR);
                    });
}

bool ctorrent::admit_only(std::uint16_t port, Senders const& senders) {
    bool done = true;
    for_each_socket(SOCK_DGRAM, port,
                    [&](int descriptor, sockaddr_storage& address, socklen_t, in_port_t*) {
                        if (!attach(descriptor, senders, address.ss_family == AF_INET6))
                            done = false;
                    });
    return done;
}
