// What we add to every peer connection.
//
// TCP_NODELAY: libtorrent sets it nowhere, and Nagle's algorithm meeting delayed acknowledgements
// costs a reader 40 ms per request.
//
// Exact counts of payload: libtorrent adds up once a second and forgets what a connection that
// ends in between has carried, which is everything when files are small.
#include "Session.hpp"

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#include <libtorrent/aux_/socket_type.hpp>
#include <libtorrent/peer_connection.hpp>
#include <libtorrent/peer_connection_handle.hpp>
#include <libtorrent/peer_request.hpp>
#pragma clang diagnostic pop

namespace ctorrent {

std::shared_ptr<Traffic> TrafficTable::open(std::uint64_t token) {
    std::lock_guard guard(lock);
    auto& traffic = torrents[token];
    if (!traffic) traffic = std::make_shared<Traffic>();
    return traffic;
}

std::shared_ptr<Traffic> TrafficTable::find(std::uint64_t token) {
    std::lock_guard guard(lock);
    auto const found = torrents.find(token);
    return found == torrents.end() ? nullptr : found->second;
}

void TrafficTable::erase(std::uint64_t token) {
    std::lock_guard guard(lock);
    torrents.erase(token);
}

namespace {

void set_no_delay(lt::peer_connection_handle const& handle) {
    auto const connection = handle.native_handle();
    if (!connection) return;
    lt::error_code ignored;  // a connection that is just closing
    auto& socket = connection->get_socket();
    if (auto* const plain = boost::get<lt::tcp::socket>(&socket))
        plain->set_option(lt::tcp::no_delay(true), ignored);
    else if (auto* const tls = boost::get<lt::ssl_stream<lt::tcp::socket>>(&socket))
        tls->set_option(lt::tcp::no_delay(true), ignored);
}

struct Peer final : lt::peer_plugin {
    Peer(lt::peer_connection_handle handle, std::shared_ptr<Traffic> traffic)
        : handle(std::move(handle)), traffic(std::move(traffic)) {}

    void on_connected() override { set_no_delay(handle); }

    bool on_piece(lt::peer_request const& piece, lt::span<char const>) override {
        traffic->downloaded.fetch_add(piece.length, std::memory_order_relaxed);
        return false;
    }

    void sent_payload(int bytes) override {
        traffic->uploaded.fetch_add(bytes, std::memory_order_relaxed);
    }

    lt::peer_connection_handle handle;
    std::shared_ptr<Traffic> traffic;
};

struct Torrent final : lt::torrent_plugin {
    explicit Torrent(std::shared_ptr<Traffic> traffic) : traffic(std::move(traffic)) {}

    std::shared_ptr<lt::peer_plugin> new_connection(
        lt::peer_connection_handle const& handle) override {
        // An incoming connection is open already; an outgoing one tells when it is.
        if (!handle.is_outgoing()) set_no_delay(handle);
        return std::make_shared<Peer>(handle, traffic);
    }

    std::shared_ptr<Traffic> traffic;
};

struct Plugin final : lt::plugin {
    explicit Plugin(std::shared_ptr<TrafficTable> table) : table(std::move(table)) {}

    lt::feature_flags_t implemented_features() override { return {}; }

    std::shared_ptr<lt::torrent_plugin> new_torrent(lt::torrent_handle const&,
                                                    lt::client_data_t token) override {
        return std::make_shared<Torrent>(table->open(token_of(token)));
    }

    std::shared_ptr<TrafficTable> table;
};

}  // namespace

std::shared_ptr<lt::plugin> make_plugin(std::shared_ptr<TrafficTable> table) {
    return std::make_shared<Plugin>(std::move(table));
}

}  // namespace ctorrent
