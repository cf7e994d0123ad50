// What the shim's translation units share. Not part of the C surface.
#pragma once

// libtorrent's declarations change with these (Debian's libtorrent-rasterbar.pc lists them) and
// SwiftPM drops -D from pkg-config: a missing one is a silent mismatch of layouts.
#if !defined TORRENT_LINKING_SHARED || !defined BOOST_ASIO_ENABLE_CANCELIO \
    || !defined BOOST_ASIO_NO_DEPRECATED || !defined TORRENT_USE_OPENSSL \
    || !defined TORRENT_USE_LIBCRYPTO || !defined TORRENT_SSL_PEERS \
    || !defined OPENSSL_NO_SSL2 || !defined BOOST_ALL_NO_LIB
#error "build CTorrent with the defines of libtorrent-rasterbar.pc (see Package.swift)"
#endif
#if defined TORRENT_NO_DEPRECATE || defined TORRENT_ABI_VERSION || defined TORRENT_USE_ASSERTS
#error "Debian builds libtorrent with the default ABI and without assertions"
#endif

// The headers of libtorrent and boost warn under clang's newer defaults; ours must not.
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#include <boost/version.hpp>
#include <libtorrent/add_torrent_params.hpp>
#include <libtorrent/alert_types.hpp>
#include <libtorrent/extensions.hpp>
#include <libtorrent/session.hpp>
#include <libtorrent/session_params.hpp>
#include <libtorrent/torrent_handle.hpp>
#include <libtorrent/torrent_info.hpp>
#include <libtorrent/torrent_status.hpp>
#include <libtorrent/version.hpp>
#pragma clang diagnostic pop

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "CTorrent.h"

// The peer plugin and the disk queue rest on what 2.0.8 does inside; another version needs review.
#if LIBTORRENT_VERSION_NUM != 20008
#error "CTorrent is written against libtorrent 2.0.8"
#endif

namespace ctorrent {

namespace lt = libtorrent;

/// libtorrent binds a UDP socket beside every TCP listener, whether uTP is on or not. Connects it
/// to a port of its own address at which nobody is: from then on no datagram reaches it.
void silence_udp(std::uint16_t port);

/// Who a UDP socket takes packets from.
struct Senders {
    using IPv6 = std::array<std::uint32_t, 4>;
    std::vector<std::uint32_t> v4;  // in the machine's order, as the filter loads them
    std::vector<IPv6> v6;

    void add(std::string const& address);
};

/// Ends the listening of the TCP sockets on a port: libtorrent has one beside each UDP socket.
void shut_listeners(std::uint16_t port);

/// From now on the kernel drops what others send to the UDP sockets on a port. Where it takes no
/// filter as long, the first senders count. False: a socket has no filter.
bool admit_only(std::uint16_t port, Senders const& senders);

/// Writes `text`, cut off, if there is room at all.
void explain(char* message, size_t message_bytes, char const* text);
/// Waits for the listening socket; 0: it did not open.
std::uint16_t wait_for_port(lt::session& session, bool tls);
/// The text of a failed bind, from the alerts of a session that did not come up.
std::string listen_failure(lt::session& session);
/// As libtorrent reads it; IPv6 without brackets.
std::string listen_interface(std::string const& address, std::string const& port);

/// Payload bytes of one torrent since it was added.
struct Traffic {
    std::atomic<std::int64_t> downloaded{0};
    std::atomic<std::int64_t> uploaded{0};
};

/// Every torrent's counters by token; libtorrent's network thread opens them.
class TrafficTable {
  public:
    std::shared_ptr<Traffic> open(std::uint64_t token);
    std::shared_ptr<Traffic> find(std::uint64_t token);
    void erase(std::uint64_t token);

  private:
    std::mutex lock;
    std::unordered_map<std::uint64_t, std::shared_ptr<Traffic>> torrents;
};

/// Our name for a torrent, as libtorrent carries it: a number in the place of a pointer.
inline std::uint64_t token_of(lt::client_data_t data) {
    return reinterpret_cast<std::uintptr_t>(data.get<char>());
}

/// A libtorrent session, and what wakes the thread that drains its alerts.
struct Running {
    /// Shared while a call uses `session`, or what a session keeps beside it, exclusive to take it away.
    std::shared_mutex lock;
    std::unique_ptr<lt::session> session;
    std::vector<lt::alert*> alerts;  // the draining thread's own
    std::uint16_t port = 0;
    int event_descriptor;

    /// Throws when there is no descriptor for events.
    Running();
    ~Running();
    Running(Running const&) = delete;
    Running& operator=(Running const&) = delete;

    /// Alerts wake the drainer from now on.
    void notify();
    void wake() const;
    /// Ends the session; `clear` runs with the lock held, for what is kept beside it.
    template <typename Clear>
    void stop(Clear clear);
    /// Runs `body` on the session unless it is stopped; exceptions become results.
    template <typename Body>
    ctorrent_result use(Body body);
    /// Fetches what was announced, for one thread. Alerts stay valid until the next call.
    ctorrent_result drain();
};

template <typename Clear>
void Running::stop(Clear clear) {
    try {
        std::unique_ptr<lt::session> stopping;
        {
            std::unique_lock guard(lock);
            stopping = std::move(session);
            clear();
        }
        // 2.0.8 may call the notification while it is being destroyed.
        if (stopping) stopping->set_alert_notify({});
    } catch (...) {
        // Nothing can be done about a shutdown that fails; the session is gone either way.
    }
}

template <typename Body>
ctorrent_result Running::use(Body body) {
    try {
        std::shared_lock guard(lock);
        if (!session) return CTORRENT_STOPPED;
        return body(*session);
    } catch (...) {
        return CTORRENT_FAILED;
    }
}

/// Runs `body`; exceptions become results that are explained.
template <typename Body>
ctorrent_result explained(char* message, size_t message_bytes, Body body) {
    try {
        return body();
    } catch (std::exception const& error) {
        explain(message, message_bytes, error.what());
    } catch (...) {
        explain(message, message_bytes, "unknown exception");
    }
    return CTORRENT_FAILED;
}

std::shared_ptr<lt::plugin> make_plugin(std::shared_ptr<TrafficTable> table);
lt::settings_pack make_settings(ctorrent_options const& options);

}  // namespace ctorrent

struct ctorrent_session : ctorrent::Running {
    std::unordered_map<std::uint64_t, libtorrent::torrent_handle> handles;
    std::shared_ptr<ctorrent::TrafficTable> traffic = std::make_shared<ctorrent::TrafficTable>();
};
