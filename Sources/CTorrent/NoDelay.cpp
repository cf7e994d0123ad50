// TCP_NODELAY on every peer connection. libtorrent sets it nowhere, and Nagle's algorithm meeting
// delayed acknowledgements costs a reader 40 ms per request.
#include "Session.hpp"

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#include <libtorrent/aux_/socket_type.hpp>
#include <libtorrent/peer_connection.hpp>
#include <libtorrent/peer_connection_handle.hpp>
#pragma clang diagnostic pop

namespace ctorrent {

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

struct NoDelayPeer final : lt::peer_plugin {
    explicit NoDelayPeer(lt::peer_connection_handle const& handle) : handle(handle) {}
    void on_connected() override { set_no_delay(handle); }
    lt::peer_connection_handle handle;
};

struct NoDelayTorrent final : lt::torrent_plugin {
    std::shared_ptr<lt::peer_plugin> new_connection(
        lt::peer_connection_handle const& handle) override {
        // An incoming connection is open already; an outgoing one tells when it is.
        if (handle.is_outgoing()) return std::make_shared<NoDelayPeer>(handle);
        set_no_delay(handle);
        return {};
    }
};

struct NoDelay final : lt::plugin {
    lt::feature_flags_t implemented_features() override { return {}; }
    std::shared_ptr<lt::torrent_plugin> new_torrent(lt::torrent_handle const&,
                                                    lt::client_data_t) override {
        return std::make_shared<NoDelayTorrent>();
    }
};

}  // namespace

std::shared_ptr<lt::plugin> make_no_delay_plugin() { return std::make_shared<NoDelay>(); }

}  // namespace ctorrent
